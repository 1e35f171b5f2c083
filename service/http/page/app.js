"use strict";
// The page asks the API like any other caller, with the visitor's key.

const KEY = "automr-key";
const place = (id) => document.getElementById(id);
const has = (path) => document.body.dataset.paths.split(" ").includes(path);
let shown = []; // ids of the last list, to show what changed
let user = null;
let cursor = null;
let asking = 0;

async function call(method, path, body) {
  const headers = body === undefined ? {} : { "Content-Type": "application/json" };
  const key = sessionStorage.getItem(KEY);
  if (key) headers["X-API-Key"] = key;
  const answer = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  if (answer.status === 401) {
    close(Boolean(key));
    throw new Error("A valid key is needed.");
  }
  const isJson = (answer.headers.get("content-type") || "").includes("json");
  const content = isJson ? await answer.json() : await answer.text();
  if (!answer.ok) throw new Error(content.detail || `status ${answer.status}`);
  return content;
}

function close(wasWrong) {
  sessionStorage.removeItem(KEY);
  place("main").hidden = true;
  place("gate").hidden = false;
  place("bundle").textContent = "";
  place("gate-error").textContent = wasWrong ? "This key is not valid." : "";
  for (const id of ["items", "memory", "history", "remembered", "users", "found", "figures", "models"]) place(id).replaceChildren();
  place("key").focus();
}

async function open() {
  const model = await call("GET", "model");
  place("gate").hidden = true;
  place("main").hidden = false;
  place("bundle").textContent = `${model.bundle}, ${model.num_items} items`;
  await Promise.all([findUsers(), figures(), eventTypes()]);
}

// ---- users

async function findUsers() {
  if (!has("/users")) return;
  const page = await call("GET", `users?limit=8&prefix=${encodeURIComponent(place("user").value)}`);
  const ids = page.users.map((each) => each.user_id ?? each);
  place("users").replaceChildren(...ids.map((id) => element("li", {}, element("button", { type: "button", class: "small", on: { click: () => choose(id) } }, id))));
}

async function choose(id) {
  place("user").value = id;
  await ask();
}

async function person() {
  place("history").replaceChildren();
  place("remembered").replaceChildren();
  place("older").hidden = true;
  if (!user) {
    place("person-facts").textContent = "No user is chosen.";
    return;
  }
  cursor = null;
  try {
    await older();
  } catch (error) {
    place("person-facts").textContent = `${user}: ${error.message}`;
  }
}

async function older() {
  const page = await call("GET", `users/${encodeURIComponent(user)}?limit=10${cursor ? `&cursor=${encodeURIComponent(cursor)}` : ""}`);
  place("person-facts").textContent = `${page.user_id}: ${page.counts.events} events, ${page.counts.states} memory states`;
  place("history").append(...page.recent.map((event) => element("li", {}, event.title || event.item_id,
    element("p", { class: "quiet" }, [event.type, event.value ?? "", day(event.timestamp), event.query ?? ""].filter((text) => text !== "").join(" · ")))));
  place("remembered").replaceChildren(...page.memory.map((each) => element("li", {}, each.title || each.item_id, element("p", { class: "quiet" }, day(each.timestamp)))));
  if (!page.memory.length) place("remembered").append(element("li", { class: "quiet" }, "Nothing yet: all events are recent."));
  cursor = page.next_cursor;
  place("older").hidden = !cursor;
}

// ---- recommendations

function request() {
  const body = { user_id: place("user").value.trim() || null };
  for (const field of document.querySelectorAll("[data-parameter]")) {
    if (field.value.trim() === "") continue;
    try {
      body[field.dataset.parameter] = field.dataset.kind === "text" ? field.value : JSON.parse(field.value);
    } catch {
      throw new Error(`${field.dataset.parameter}: this is not JSON`);
    }
  }
  return body;
}

async function ask() {
  const mine = ++asking;
  place("ask-error").textContent = "";
  try {
    const body = request();
    if (body.user_id !== user) shown = [];
    user = body.user_id;
    const answer = await call("POST", "recommend", body);
    if (mine !== asking) return;
    list(answer);
    await person();
  } catch (error) {
    place("ask-error").textContent = error.message;
  }
}

function list(answer) {
  const titles = new Map([...answer.memory, ...answer.items].map((each) => [each.item_id, each.title]));
  for (const line of document.querySelectorAll("[data-item]")) titles.set(line.dataset.item, line.dataset.title);
  const before = new Map(shown.map((id, index) => [id, index + 1]));
  place("items").replaceChildren(...answer.items.map((item) => row(item, before, titles, answer.recommendation_id)));
  const changed = shown.length ? answer.items.filter((item) => before.get(item.item_id) !== item.rank).length : 0;
  const facts = [`${answer.items.length} items in ${answer.timings_ms.total.toFixed(1)} ms`, answer.fallback && `fallback: ${answer.fallback}`, changed && `${changed} places changed`,
    ...(answer.warnings || []).map((each) => `${each.field}: ${each.message}`)];
  place("answer-facts").textContent = facts.filter(Boolean).join(" · ");
  shown = answer.items.map((item) => item.item_id);
  place("memory").replaceChildren(...answer.memory.map(weighed));
  if (!answer.memory.length) place("memory").append(element("li", { class: "quiet" }, "No older event counts in this answer."));
}

function row(item, before, titles, recommendation) {
  const old = before.get(item.item_id);
  const moved = !before.size || old === item.rank ? null : old ? `from ${old}` : "new";
  const score = item.score === null ? "" : `score ${item.score.toFixed(2)}`;
  const actions = ["view", "purchase", "dislike"].map((type) => element("button", {
    type: "button", class: "small", "aria-label": `${type}: ${item.title}`, on: { click: () => post(item.item_id, type, recommendation) },
  }, type));
  return element("li", { class: moved ? "changed" : "", "data-id": item.item_id },
    element("span", { class: "rank" }, String(item.rank)),
    element("div", {}, element("span", { class: "title" }, item.title), moved && element("span", { class: moved === "new" ? "badge new" : "badge" }, moved)),
    user && element("div", { class: "actions" }, ...actions),
    element("p", { class: "quiet more" }, [item.explored && "explored: little is known of it", SOURCES[item.source] || item.source, reasonText(item.reason, titles), score].filter(Boolean).join(" · ")));
}

function weighed(each) {
  const parts = [["weight", each.weight], ["share", each.share]].filter(([, value]) => value !== null && value !== undefined);
  return element("li", { "data-item": each.item_id, "data-title": each.title || each.item_id }, each.title || each.item_id,
    ...parts.map(([name, value]) => element("div", {}, element("span", { class: "quiet" }, `${name} ${percent(value)}`),
      element("meter", { min: "0", max: "1", value: String(value), "aria-label": `${name} of ${each.title || each.item_id}` }))),
    element("p", { class: "quiet" }, day(each.timestamp)));
}

// ---- events

async function eventTypes() {
  let names = ["view", "click", "cart", "purchase", "play", "rating", "like", "dislike", "return"];
  if (has("/settings/events")) {
    const table = await call("GET", "settings/events");
    const types = table.types ?? table.event_types ?? {};
    const found = Array.isArray(types) ? types.map((each) => each.name ?? each.type) : Object.keys(types);
    if (found.length) names = found;
  }
  place("types").replaceChildren(...names.map((name) => element("option", { value: name })));
}

async function search() {
  const words = place("search").value.trim();
  let found = [];
  try {
    if (has("/items")) found = (await call("GET", `items?limit=8&query=${encodeURIComponent(words)}`)).items;
    else if (words) found = [await call("GET", `items/${encodeURIComponent(words)}`)];
    place("posted").textContent = found.length ? "" : "No item was found.";
  } catch (error) {
    place("posted").textContent = error.message;
  }
  place("found").replaceChildren(...found.map((item) => element("li", {}, item.title, element("p", { class: "quiet" }, item.item_id),
    element("button", { type: "button", class: "small", "aria-label": `Post an event: ${item.title}`, on: { click: () => post(item.item_id, place("type").value) } }, "post"))));
}

async function post(item, type, recommendation) {
  if (!user) {
    place("posted").textContent = "Choose a user first.";
    return;
  }
  const event = { user_id: user, item_id: item, timestamp: Math.floor(Date.now() / 1000), type: type || "view" };
  if (recommendation && document.body.dataset.attributed === "yes") event.recommendation_id = recommendation;
  try {
    const answer = await call("POST", "interactions", { interactions: [event], wait: "visible" });
    place("posted").textContent = `${event.type} of ${item}: ${answer.results[0].status}`;
    await ask();
  } catch (error) {
    place("posted").textContent = error.message;
  }
}

// ---- live figures

async function figures() {
  const health = place("health");
  try {
    const answer = await fetch("readyz");
    health.textContent = answer.ok ? "ready" : (await answer.json()).title;
    health.className = `pill ${answer.ok ? "good" : "bad"}`;
    if (place("main").hidden) return;
    const of = samples(await call("GET", "metrics"));
    const at = (name) => of.get(`automr_${name}`) || 0;
    const mean = at("http_request_seconds_count") ? (1000 * at("http_request_seconds_sum")) / at("http_request_seconds_count") : 0;
    const rows = [["Requests answered", at("http_requests_total")], ["Mean time of an answer", `${mean.toFixed(1)} ms`], ["Refused", at("rejected_total")],
      ["Events received", at("interactions_total")], ["Waiting to be encoded", at("encode_backlog")], ["Fallbacks", at("fallback_total")], ["Connections", at("connections")]];
    place("figures").replaceChildren(...rows.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, String(value)))));
    await models();
    if (has("/experiments")) await experiments();
  } catch {
    health.textContent = "no answer";
    health.className = "pill bad";
  }
}

async function models() {
  const model = await call("GET", "model");
  const bundles = has("/bundles") ? (await call("GET", "bundles").catch(() => ({ bundles: [] }))).bundles : [];
  const rows = bundles.length ? bundles.map((each) => [`${each.name}: ${each.status}`, [each.bundle, each.space && `space ${each.space}`, each.problem]]) :
    [[model.bundle, [`space ${model.space}`, `${model.vocabulary} vocabulary`, `${model.num_items} items`]]];
  place("models").replaceChildren(...rows.map(([name, facts]) => element("li", {}, name, element("p", { class: "quiet" }, facts.filter(Boolean).join(" · ")))));
}

async function experiments() {
  const page = await call("GET", "experiments");
  const head = ["variant", "lists", "impressions", "clicks", "conversions"];
  const rows = page.results.map((each) => head.map((name) => element("td", {}, String(each[name] ?? ""))));
  const table = element("table", {}, element("thead", {}, element("tr", {}, ...head.map((name) => element("th", { scope: "col" }, name)))),
    element("tbody", {}, ...rows.map((cells) => element("tr", {}, ...cells))));
  const title = page.experiment ? `${page.experiment.name}: ${page.experiment.variants.map((each) => `${each.name} ${percent(each.share)}`).join(", ")}` : "None runs.";
  place("experiments").replaceChildren(element("p", { class: "quiet" }, title), ...(rows.length ? [table] : []));
}

// ---- start

function submit(id, run) {
  place(id).addEventListener("submit", (event) => {
    event.preventDefault();
    run();
  });
}

let typing = 0;
place("user").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => findUsers().catch(() => {}), 200);
});
place("older").addEventListener("click", () => older().catch((error) => { place("person-facts").textContent = error.message; }));
submit("ask-form", ask);
submit("post-form", search);
submit("gate-form", () => {
  sessionStorage.setItem(KEY, place("key").value.trim());
  place("key").value = "";
  open().catch(() => {});
});
open().catch((error) => { place("health").textContent = error.message; });
setInterval(figures, 5000);
