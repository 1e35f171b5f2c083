"use strict";
// Words and figures of the page. Text reaches the document as text only, never as HTML.

function element(name, options = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(options)) {
    if (key === "class") made.className = value;
    else if (key === "on") for (const [event, run] of Object.entries(value)) made.addEventListener(event, run);
    else made.setAttribute(key, value);
  }
  for (const child of children) if (child !== null && child !== undefined) made.append(child);
  return made;
}

const VOICES = {
  language_model: "the language model expects it",
  popularity: "many choose it",
  near: "often near",
  follow: "came next for others after",
  linear: "goes with",
  alike: "its title is like",
  return: "the user had it before",
};
const SOURCES = { generated: "written by the model", grounded: "near a written title", popular: "popular", found: "found by words", trending: "chosen more than usual lately", latest: "new" };

function reasonText(reason, titles) {
  if (!reason) return "";
  const because = reason.item_id ? " " + (titles.get(reason.item_id) || reason.item_id) : "";
  return `${VOICES[reason.voice] || reason.voice}${because} (${percent(reason.share)})`;
}

function percent(share) {
  return `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;
}

function day(seconds) {
  return new Date(seconds * 1000).toISOString().slice(0, 16).replace("T", " ");
}

// Prometheus text to a sum for each name: samples("automr_x 3\n").get("automr_x") is 3.
function samples(text) {
  const sums = new Map();
  for (const line of text.split("\n")) {
    const found = /^(\w+)(\{.*\})? (\S+)$/.exec(line);
    if (found) sums.set(found[1], (sums.get(found[1]) || 0) + Number(found[3]));
  }
  return sums;
}
