// The page of `sea-export chat --web`. What models and users write is put into the page as text, never as HTML.
"use strict";

const element = (id) => document.getElementById(id);
const NAMES = { base: "", edited: "" };
const WAIT_FOR_THE_SLIDER = 350; // milliseconds

let ownStrength = null;
let strength = null; // null: the edit's own
let asked = 0; // turns of the conversation
let running = null; // the promise of what is being done
let answersAgain = false; // whether that is the answer to the last prompt again
let wantsAgain = false; // whether that is to be done next
let sliderTimer = null;

// Requests

function controls() {
  const layers = element("layers").value.trim();
  return { strength, layers: layers === "" ? null : layers, system: element("system").value };
}

async function post(action, further, onEvent) {
  const response = await fetch(action, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...controls(), ...further }),
  });
  if (!response.ok) {
    throw new Error((await response.text()).trim());
  }
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    const lines = (rest + (done ? "" : value)).split("\n");
    rest = lines.pop();
    lines.filter((line) => line !== "").forEach((line) => onEvent(JSON.parse(line)));
    if (done) {
      return;
    }
  }
}

function stop() {
  if (running !== null) {
    fetch("stop", { method: "POST", headers: { "Content-Type": "application/json" }, body: "{}" });
  }
}

/** Does one thing at a time. */
async function alone(work) {
  if (running !== null) {
    return;
  }
  running = work();
  await running;
  running = null;
  if (wantsAgain) {
    askAgain();
  }
}

/** Asks the program for something, and tells what became of it. */
async function request(action, further, message, onEvent) {
  let problem = null;
  const told = (event) => {
    if (event.error !== undefined) {
      problem = event.error;
    } else {
      onEvent(event);
    }
  };
  setBusy(true, message);
  try {
    await post(action, further, told);
  } catch (error) {
    problem = error instanceof TypeError ? "The program does not answer. It may have ended." : error.message;
  }
  setBusy(false, problem === null ? "" : problem, problem !== null);
}

function setBusy(busy, message, isError = false) {
  element("send").disabled = busy;
  element("reset").disabled = busy;
  element("save").querySelector("button").disabled = busy;
  element("stop").disabled = !busy;
  element("status").textContent = message;
  element("status").classList.toggle("error", isError);
}

// What is shown

function made(tag, className, text) {
  const node = document.createElement(tag);
  node.className = className;
  if (text !== undefined) {
    node.textContent = text;
  }
  return node;
}

/** A turn whose answers are empty so far. */
function newTurn(prompt, setting) {
  const turn = made("li", "turn");
  const line = made("p", "prompt", prompt);
  line.dir = "auto";
  const answers = made("div", "answers");
  for (const side of ["base", "edited"]) {
    const part = made("section", side);
    part.append(made("h2", "", side === "base" ? NAMES.base : `${NAMES.edited}, ${setting}`));
    const text = made("p", "text growing");
    text.dir = "auto";
    part.append(text);
    answers.append(part);
  }
  turn.append(line, answers);
  return turn;
}

function fillTurn(turn, told) {
  for (const side of ["base", "edited"]) {
    const part = turn.querySelector(`.${side}`);
    const text = part.querySelector(".text");
    text.classList.remove("growing");
    text.replaceChildren(
      ...told[side].pieces.map((piece) => made("span", piece.changed ? "changed" : "", piece.text)),
    );
    part.querySelectorAll(".mark").forEach((mark) => mark.remove());
    part.append(...told[side].marks.map((mark) => made("span", "mark", mark)));
  }
  turn.querySelector(".edited h2").textContent = `${NAMES.edited}, ${told.setting}`;
}

function shownStrength() {
  return strength === null ? "its own strength" : `strength ${strength}`;
}

/** Shows what an answer is so far, and then the whole turn. Says whether there was one. */
async function showTurn(turn, action, further, message) {
  let kept = false;
  await request(action, further, message, (event) => {
    if (event.text !== undefined) {
      const text = turn.querySelector(`.${event.side} .text`);
      text.classList.add("growing");
      text.textContent = event.text;
    } else if (event.turn !== undefined) {
      fillTurn(turn, event.turn);
      kept = true;
    }
  });
  return kept;
}

async function ask(prompt) {
  const turn = newTurn(prompt, shownStrength());
  element("turns").append(turn);
  element("empty").hidden = true;
  turn.scrollIntoView({ block: "end" });
  if (await showTurn(turn, "ask", { prompt }, "Answering.")) {
    asked += 1;
    return;
  }
  turn.remove();
  element("empty").hidden = asked > 0;
  if (element("prompt").value === "") {
    element("prompt").value = prompt; // nothing that was written is lost
  }
}

/** Answers the last prompt again, as soon as nothing else is done. */
function askAgain() {
  wantsAgain = true;
  if (running !== null) {
    if (answersAgain) {
      stop();
    }
    return;
  }
  wantsAgain = false;
  if (asked > 0) {
    alone(async () => {
      const turn = element("turns").lastElementChild;
      const before = turn.cloneNode(true);
      answersAgain = true;
      if (!(await showTurn(turn, "again", {}, "Answering again."))) {
        turn.replaceWith(before);
      }
      answersAgain = false;
    });
  }
}

// Controls

function showStrength(value) {
  element("strength").value = value;
  element("strength-number").value = Number(value.toFixed(4));
}

function chooseStrength(value) {
  strength = value;
  showStrength(value === null ? ownStrength : value);
  clearTimeout(sliderTimer);
  sliderTimer = setTimeout(askAgain, WAIT_FOR_THE_SLIDER);
}

element("strength").addEventListener("input", () => {
  element("strength-number").value = Number(element("strength").value).toFixed(2);
});
element("strength").addEventListener("change", () => {
  chooseStrength(Number(Number(element("strength").value).toFixed(2)));
});
element("strength-number").addEventListener("change", () => {
  const value = element("strength-number").valueAsNumber;
  if (Number.isFinite(value)) {
    chooseStrength(value);
  }
});
element("own-strength").addEventListener("click", () => chooseStrength(null));
element("layers").addEventListener("change", askAgain);

element("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const prompt = element("prompt").value.trim();
  if (prompt !== "" && running === null) {
    element("prompt").value = "";
    alone(() => ask(prompt));
  }
});
element("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    element("composer").requestSubmit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    stop();
  }
});
element("stop").addEventListener("click", stop);

element("reset").addEventListener("click", () => {
  alone(() =>
    request("reset", {}, "", () => {
      element("turns").replaceChildren();
      element("empty").hidden = false;
      asked = 0;
      element("prompt").focus();
    }),
  );
});

element("save").addEventListener("submit", (event) => {
  event.preventDefault();
  alone(() => save(element("output").value));
});

async function save(output) {
  element("saved").replaceChildren();
  await request("save", { output }, "Saving. This takes as long as sea-export save.", (event) => {
    const { digests, command } = event.saved;
    const lines = Object.entries(digests).map(([name, digest]) => `SHA-256 ${digest}  ${name}`);
    element("saved").append(
      made("p", "", `Saved to ${event.saved.output}. The same output is made by`),
      made("code", "", command),
      made("code", "digests", lines.join("\n")),
    );
  });
}

// The beginning

async function begin() {
  const state = await (await fetch("state")).json();
  NAMES.base = state.base;
  NAMES.edited = state.edited;
  ownStrength = state.own_strength;
  strength = state.strength;
  element("names").textContent = `${state.base} beside ${state.edited}`;
  element("no-roles").hidden = state.has_roles;
  element("system").value = state.system;
  element("layers").value = state.layers === null ? "" : state.layers;
  element("layers-hint").textContent = `The edit is in ${state.edited_layers}. Write a list such as 10-20,25, or last:3.`;
  const now = strength === null ? ownStrength : strength;
  element("strength").max = Math.max(2, Math.ceil(2 * (now === null ? 1 : now)));
  showStrength(now === null ? 1 : now);
  for (const id of ["strength", "strength-number", "own-strength"]) {
    element(id).disabled = !state.has_dial;
  }
  element("own-strength").textContent = ownStrength === null ? "Own strengths" : `Own strength (${Number(ownStrength.toFixed(4))})`;
  if (!state.has_dial) {
    element("strength-hint").textContent = "This edit has a strength of its own and no other.";
  }
  for (const told of state.turns) {
    const turn = newTurn(told.prompt, told.setting);
    fillTurn(turn, told);
    element("turns").append(turn);
  }
  asked = state.turns.length;
  element("empty").hidden = asked > 0;
  element("more").open = window.matchMedia("(min-width: 52rem)").matches;
  element("prompt").focus({ preventScroll: true });
  element("turns").lastElementChild?.scrollIntoView({ block: "end" });
}

begin();
