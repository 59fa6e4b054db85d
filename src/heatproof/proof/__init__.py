"""Whether a map is true: interventions, chance, planted truth, human eyes. Nothing here makes a map; maps come in."""
