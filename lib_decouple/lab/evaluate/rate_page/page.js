"use strict";

const NAME = "decouple-rater";
const ANSWERS = { ArrowLeft: "left", ArrowRight: "right", b: "both", n: "neither" };
const byId = (id) => document.getElementById(id);
const sides = { left: byId("left"), right: byId("right") };
let config = { ticks: true };
let rater = null;
let pair = null;
let busy = false;
let warned = null; // the pair whose empty ticks were asked about

function say(text) {
  byId("says").textContent = text;
}

function show(id) {
  for (const part of ["who", "rate", "done"]) byId(part).hidden = part !== id;
}

function ready(yes) {
  for (const button of document.querySelectorAll("[data-choice]")) button.disabled = !yes;
}

async function ask(action, body) {
  if (busy) return;
  busy = true;
  ready(false);
  let state = null;
  try {
    const response = await fetch(action, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ rater, ...body }),
    });
    const text = await response.text();
    if (!response.ok) throw new Error(text.startsWith("{") ? JSON.parse(text).error : text);
    state = JSON.parse(text);
  } catch (error) {
    say(error instanceof TypeError ? "The page's own machine does not answer. Your earlier answers are kept." : error.message);
  }
  busy = false;
  if (state === null) return ready(pair !== null);
  if (rater === null) return; /* left meanwhile */
  localStorage.setItem(NAME, rater); /* a refused name would be sent again at every visit */
  say("");
  await render(state);
}

function tickBoxes(side, entities) {
  const own = sides[side].querySelector(".ticks");
  own.replaceChildren();
  entities.forEach((entity, i) => {
    const label = document.createElement("label");
    const box = document.createElement("input");
    box.type = "checkbox";
    box.value = entity;
    label.append(box, document.createTextNode(entity));
    if (i < 5) {
      const key = document.createElement("kbd");
      box.dataset.key = String((side === "left" ? i + 1 : i + 6) % 10);
      key.textContent = box.dataset.key;
      label.append(" ", key);
    }
    own.append(label);
  });
}

async function render(state) {
  pair = state.pair;
  byId("count").textContent = `${state.done} of ${state.total}`;
  byId("progress").max = state.total;
  byId("progress").value = state.done;
  byId("undo").disabled = state.done === 0;
  if (pair === null) {
    byId("total").textContent = `${rater}: ${state.done} of ${state.total} pairs rated.`;
    show("done");
    byId("done").querySelector("h1").focus();
    return;
  }
  show("rate");
  byId("prompt").textContent = pair.prompt;
  byId("asked").hidden = !config.ticks;
  const own = pair;
  const images = Object.keys(sides).map((side) => {
    const image = sides[side].querySelector("img");
    if (config.ticks) tickBoxes(side, pair.entities);
    image.removeAttribute("src");
    image.src = `picture/${pair[side]}`;
    return image.decode();
  });
  byId("prompt").focus({ preventScroll: true });
  try {
    await Promise.all(images);
    if (own === pair) ready(true);
  } catch {
    if (own === pair) say("A picture of this pair cannot be shown, so it cannot be rated. Tell whoever runs the page.");
  }
}

function choose(choice) {
  if (pair === null || busy || document.querySelector("[data-choice]").disabled) return;
  let ticks = null;
  if (config.ticks) {
    ticks = {};
    for (const side in sides) ticks[side] = [...sides[side].querySelectorAll(".ticks :checked")].map((box) => box.value);
    if (!ticks.left.length && !ticks.right.length && warned !== pair.key) {
      warned = pair.key;
      say("Nothing is ticked. Tick what you see, or answer again if neither picture shows any of it.");
      return;
    }
  }
  ask("answer", { pair: pair.key, choice, ticks });
}

function leave() {
  localStorage.removeItem(NAME);
  rater = pair = null;
  say("");
  show("who");
  byId("name").focus();
}

function enter(name) {
  rater = name;
  ask("state", {});
}

byId("who").addEventListener("submit", (event) => {
  event.preventDefault();
  enter(byId("name").value.trim());
});
for (const button of document.querySelectorAll("[data-choice]"))
  button.addEventListener("click", () => choose(button.dataset.choice));
for (const id of ["undo", "undo-done"]) byId(id).addEventListener("click", () => ask("undo", {}));
for (const id of ["leave", "leave-done"]) byId(id).addEventListener("click", leave);

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.repeat || !byId("keys").checked) return;
  if (byId("rate").hidden) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const box = document.querySelector(`.ticks [data-key="${CSS.escape(key)}"]`);
  if (box) box.checked = !box.checked;
  else if (key in ANSWERS) choose(ANSWERS[key]);
  else if (key === "u" && !byId("undo").disabled) ask("undo", {});
  else return;
  event.preventDefault();
});

fetch("config").then((response) => response.json()).then((found) => {
  config = found;
  byId("name").maxLength = config.longest;
  const name = config.rater || localStorage.getItem(NAME);
  if (name) enter(name);
  else leave();
}).catch(() => say("The page's own machine does not answer."));
