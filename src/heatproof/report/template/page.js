"use strict";
(() => {
  const form = document.querySelector(".controls");
  const shown = document.querySelector(".viewer .heat");
  const heats = [...document.querySelectorAll(".card .heat")];
  const found = JSON.parse(document.getElementById("heatproof").textContent).maps;
  const say = form.querySelector(".say");
  const show = () => {
    const said = new FormData(form);
    const method = said.get("method"), target = said.get("target") || "0";
    const heat = heats.find((one) => one.dataset.method === method && one.dataset.target === target);
    shown.src = heat.src;
    shown.alt = heat.alt;
    document.documentElement.style.setProperty("--opacity", said.get("opacity") / 100);
    form.querySelector("output").textContent = said.get("opacity") + " %";
    document.body.classList.toggle("colour", !said.get("grey"));
    const { verdict, supported } = found.find((one) => one.method === method && String(one.t) === target);
    say.textContent = verdict || "";
    say.className = verdict ? "say verdict " + (supported === null ? "open" : supported ? "yes" : "no") : "say";
  };
  form.hidden = false;
  form.addEventListener("input", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  show();
})();
