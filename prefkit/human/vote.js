"use strict";
/* The voting page. State: the annotator and their votes in order; the browser stores it after every vote, in a file on demand.
   Page and annotator determine the order of the pairs and their sides, so that a reload shows the same order.
   A live page (data.live) sends each vote to the server, which stores it; the browser stores only votes not yet confirmed. */

const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const CHOICES = ["left", "right", "tie", "skip"];
const KEYS = { arrowleft: "left", arrowright: "right", arrowdown: "tie", a: "left", b: "right", t: "tie", s: "skip", u: "undo", backspace: "undo" };
const GAP = 10; // a pair is repeated after at least this many others, if possible
const live = data.live, PAUSE = 2000; // milliseconds until the page asks a server again that did not answer

const MISSING = "A picture cannot be loaded" + (live ? ". This page keeps trying." : "; skip this one. Is the folder of images next to the page?");

let annotator = "", queue = [], votes = [], ready = false, showing = 0;
// live: pair -> choice that the server has confirmed; whether a request is on its way; the annotator who is waiting to start
let stored = new Map(), sending = false, starting = "";

/* -- hashes and random numbers --------------------------------------------------------------------------------------------- */

/** SHA-256 (FIPS 180-4) of a text's UTF-8, as hex. Browsers provide it only on secure pages, not over plain http. */
function sha256(text) {
  const bytes = new TextEncoder().encode(text), size = ((bytes.length + 8) >> 6) + 1;
  const block = new DataView(new ArrayBuffer(size * 64));
  bytes.forEach((byte, i) => block.setUint8(i, byte));
  block.setUint8(bytes.length, 128);
  block.setUint32(size * 64 - 8, Math.floor(bytes.length / 2 ** 29));
  block.setUint32(size * 64 - 4, bytes.length * 8);
  const primes = [];
  for (let n = 2; primes.length < 64; n++) if (primes.every((p) => n % p)) primes.push(n);
  const bits = (x) => Math.floor((x - Math.floor(x)) * 2 ** 32) | 0;
  const k = primes.map((p) => bits(Math.cbrt(p))), hash = primes.slice(0, 8).map((p) => bits(Math.sqrt(p)));
  const turn = (x, n) => (x >>> n) | (x << (32 - n));
  for (let start = 0; start < size * 64; start += 64) {
    const w = Array.from({ length: 16 }, (_, i) => block.getInt32(start + 4 * i));
    for (let i = 16; i < 64; i++) {
      const s0 = turn(w[i - 15], 7) ^ turn(w[i - 15], 18) ^ (w[i - 15] >>> 3);
      const s1 = turn(w[i - 2], 17) ^ turn(w[i - 2], 19) ^ (w[i - 2] >>> 10);
      w[i] = (w[i - 16] + s0 + w[i - 7] + s1) | 0;
    }
    let [a, b, c, d, e, f, g, h] = hash;
    for (let i = 0; i < 64; i++) {
      const one = (h + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + ((e & f) ^ (~e & g)) + k[i] + w[i]) | 0;
      const two = ((turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & b) ^ (a & c) ^ (b & c))) | 0;
      [h, g, f, e, d, c, b, a] = [g, f, e, (d + one) | 0, c, b, a, (one + two) | 0];
    }
    [a, b, c, d, e, f, g, h].forEach((x, i) => { hash[i] = (hash[i] + x) | 0; });
  }
  return hash.map((x) => (x >>> 0).toString(16).padStart(8, "0")).join("");
}

const named = (name) => "person-" + sha256(data.salt + "\0" + name.normalize("NFKC").trim().toLowerCase()).slice(0, 12);

/** Returns a function n -> integer in 0..n-1, determined by the page and the annotator. */
function dice() {
  let turn = 0;
  return (n) => Math.floor(parseInt(sha256([data.page, annotator, turn++].join(" ")).slice(0, 8), 16) / 2 ** 32 * n);
}

/** Returns the annotator's order: pairs shuffled, sides drawn; repeats come later, with their sides swapped. */
function ordered() {
  const roll = dice(), first = data.pairs.filter((p) => p.again === undefined), swapped = new Map(), found = [];
  for (let i = first.length - 1; i > 0; i--) {
    const j = roll(i + 1);
    [first[i], first[j]] = [first[j], first[i]];
  }
  for (const pair of first) {
    swapped.set(pair.pair, roll(2) === 1);
    found.push({ ...pair, order: swapped.get(pair.pair) ? "ba" : "ab" });
  }
  for (const pair of data.pairs.filter((p) => p.again !== undefined)) {
    const before = data.pairs[pair.again].pair;
    const from = Math.min(found.findIndex((p) => p.pair === before) + 1 + GAP, found.length);
    found.splice(from + roll(found.length - from + 1), 0, { ...pair, order: swapped.get(before) ? "ab" : "ba" });
  }
  return found;
}

/* -- storage --------------------------------------------------------------------------------------------------- */

const place = (who) => [live ? "prefkit-live" : "prefkit-vote", data.page, who].join(" ");
const unsent = () => votes.filter((v) => stored.get(v.pair) !== v.choice);

function remember(who) {
  try {
    if (!live?.annotator) localStorage.setItem(place(""), who);
    if (who) localStorage.setItem(place(who), JSON.stringify(live ? unsent() : votes));
  } catch {
    if (!live) say("This browser does not store votes: save them to a file before you close the page.", true);
  }
}

function kept(who) {
  try {
    return checked(JSON.parse(localStorage.getItem(place(who)) || "[]"));
  } catch {
    return [];
  }
}

function last() {
  try {
    return localStorage.getItem(place("")) || "";
  } catch {
    return "";
  }
}

/** Returns valid votes unchanged; throws an Error otherwise. */
function checked(list) {
  const known = new Set(data.pairs.map((p) => p.pair));
  for (const v of list) {
    if (!known.delete(v.pair) || !CHOICES.includes(v.choice) || !["ab", "ba"].includes(v.order) || !Number.isInteger(v.time)) {
      throw new Error("a vote in it is damaged");
    }
  }
  return list;
}

const check = (who, list) =>
  sha256([data.page, who, list.length, ...list.map((v) => [v.pair, v.order, v.choice, v.time].join(" "))].join("\n")).slice(0, 16);

function save() {
  const body = { prefkit_votes: data.version, run: data.run, page: data.page, annotator, asked: data.pairs.length, votes, check: check(annotator, votes) };
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(body, null, 1) + "\n"], { type: "application/json" }));
  link.download = `votes-${data.page}-${annotator}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  say(`${link.download} is in your downloads.`);
}

async function load(file) {
  try {
    const body = JSON.parse(await file.text());
    if (body.page !== data.page) throw new Error("it belongs to another page");
    if (body.check !== check(body.annotator, checked(body.votes))) throw new Error("it was changed or cut short");
    const here = kept(body.annotator), seen = new Set(body.votes.map((v) => v.pair));
    enter(body.annotator, [...body.votes, ...here.filter((v) => !seen.has(v.pair))]);
    remember(annotator);
    say(`${votes.length} votes are restored.`);
  } catch (error) {
    say(`${file.name} cannot be used: ${error.message}.`, true);
  }
}

/* -- server ---------------------------------------------------------------------------------------------------- */

/** Sends a request about the annotator's votes. Returns {votes} or {}; throws an Error if the server gives no such answer. */
async function call(method, who, vote) {
  const body = vote && JSON.stringify(vote);
  const answer = await fetch("votes/" + who, { method, body, headers: { "Content-Type": "application/json" }, cache: "no-store" });
  if (!answer.ok && answer.status !== 409) throw new Error((await answer.json().catch(() => ({}))).error || `error ${answer.status}`);
  return answer.json();
}

/** Takes over the votes that the server holds, and then those that it has not confirmed. */
function merge(list, waiting) {
  stored = new Map(list.map((v) => [v.pair, v.choice]));
  votes = [...checked(list), ...waiting.filter((v) => !stored.has(v.pair))];
}

/** Continues as this annotator: with the votes in this browser or, live, with those on the server. */
async function resume(who) {
  if (!live) return enter(who, kept(who));
  starting = who;
  try {
    merge((await call("GET", who)).votes, kept(who));
  } catch (error) {
    say(trouble(error), true);
    return setTimeout(() => { if (starting === who) resume(who); }, PAUSE);
  }
  enter(who, votes);
  remember(who);
  send();
}

/** Sends one change after the other, until the server holds what is on the screen. */
async function send() {
  if (!live || sending) return;
  sending = true;
  const who = annotator;
  try {
    let failed = false;
    while (annotator === who) {
      const chosen = new Map(votes.map((v) => [v.pair, v.choice]));
      const undone = [...stored.keys()].find((pair) => chosen.get(pair) !== stored.get(pair)), vote = unsent()[0];
      if (!undone && !vote) break;
      let answer;
      try {
        answer = await call(undone ? "DELETE" : "POST", who, undone ? { pair: undone } : vote);
      } catch (error) {
        failed = true;
        say(trouble(error), true);
        await new Promise((done) => setTimeout(done, PAUSE));
        continue;
      }
      if (answer.votes) { // the annotator has voted on this pair in another window: that vote counts
        merge(answer.votes, unsent().filter((v) => v !== vote));
        show();
      } else if (undone) stored.delete(undone);
      else stored.set(vote.pair, vote.choice);
      remember(who);
    }
    if (failed) say("All votes are stored.");
  } finally {
    sending = false;
  }
  tally();
}

function trouble(error) {
  const n = annotator ? unsent().length : 0, waiting = `${n} vote${n === 1 ? " is" : "s are"} not stored yet. `;
  return `The server does not answer (${error.message}). ${n ? waiting : ""}This page keeps trying.`;
}

function tally() {
  const n = unsent().length;
  at("stored").textContent = n ? `${n} not stored yet; please leave this page open.` : "All votes are stored. You can close this page.";
}

/* -- display -------------------------------------------------------------------------------------------------- */

function say(text, bad = false) {
  at("say").textContent = text;
  at("say").classList.toggle("bad", bad);
}

function enter(who, list) {
  annotator = who;
  votes = list;
  queue = ordered();
  show();
}

const next = () => {
  const done = new Set(votes.map((v) => v.pair));
  return queue.find((p) => !done.has(p.pair));
};

const left = (pair) => (pair.order === "ab" ? [pair.a, pair.b] : [pair.b, pair.a]); // its images, from left to right

async function show() {
  const pair = annotator ? next() : null, turn = ++showing;
  ready = false;
  document.body.dataset.ready = "";
  at("start").hidden = Boolean(annotator);
  at("vote").hidden = !pair;
  at("done").hidden = !annotator || Boolean(pair);
  document.querySelectorAll("[data-choice=undo]").forEach((b) => { b.disabled = !votes.length; });
  if (!pair) {
    const skipped = votes.filter((v) => v.choice === "skip").length;
    at("summary").textContent = `${votes.length - skipped} votes, ${skipped} skipped.`;
    tally();
    document.body.dataset.ready = annotator ? "done" : "start";
    return;
  }
  at("bar").max = queue.length;
  at("bar").value = votes.length;
  at("count").textContent = `${votes.length + 1} of ${queue.length}`;
  at("prompt").firstElementChild.textContent = pair.prompt.trim() || "(no words)";
  at("prompt").scrollTop = 0;
  const sides = left(pair);
  const images = ["left", "right"].map((side, i) => {
    const image = at(side).querySelector("img");
    image.src = data.images[sides[i]];
    return image.decode();
  });
  try {
    await Promise.all(images);
  } catch {
    if (turn !== showing) return;
    ["left", "right"].forEach((side) => at(side).querySelector("img").removeAttribute("src")); // not those of the pair before
    if (live) setTimeout(() => { if (turn === showing) show(); }, PAUSE);
    if (!live || !unsent().length) say(MISSING, true);
    return;
  }
  if (turn !== showing) return;
  ready = true;
  if (live && at("say").textContent === MISSING) say("");
  const coming = live && queue[queue.indexOf(pair) + 1];
  if (coming) left(coming).forEach((i) => { new Image().src = data.images[i]; }); // so that it appears at once
  document.body.dataset.ready = pair.pair;
}

function choose(choice) {
  if (choice === "undo") {
    if (!votes.length) return;
    votes.pop();
    say("The last vote is undone.");
  } else if (choice === "save") {
    return save();
  } else if (choice === "leave") {
    if (sending || (live && unsent().length)) return say("Some changes are not stored yet. Wait until the server answers.", true);
    annotator = "";
    remember("");
    at("name").value = "";
    say("");
    show();
    return at("name").focus();
  } else {
    const pair = next();
    if (!pair || (!ready && choice !== "skip")) return;
    votes.push({ pair: pair.pair, order: pair.order, choice, time: Date.now() });
    say({ left: "A", right: "B", tie: "Tie", skip: "Skipped" }[choice]);
  }
  remember(annotator);
  show();
  send();
}

document.addEventListener("keydown", (event) => {
  const choice = KEYS[event.key.toLowerCase()];
  const typing = event.target.matches("input, #prompt");
  if (!choice || !annotator || typing || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  choose(choice);
});
document.querySelectorAll("[data-choice]").forEach((b) => b.addEventListener("click", () => { choose(b.dataset.choice); b.blur(); }));
["left", "right"].forEach((side) => at(side).addEventListener("click", () => { choose(side); at(side).blur(); }));
at("who").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = at("name").value;
  if (!name.trim()) return say("Enter a name, or a word.", true);
  const who = named(name);
  if (live) return resume(who);
  enter(who, kept(who));
  remember(who);
  say(votes.length ? `Welcome back: ${votes.length} votes are restored.` : "");
});
at("load").addEventListener("change", (event) => {
  if (event.target.files.length) load(event.target.files[0]);
  event.target.value = "";
});
window.addEventListener("storage", (event) => { // offline: the same annotator votes in another tab
  if (live) return;
  if (annotator && event.key === place(annotator)) {
    votes = kept(annotator);
    show();
  } else if (!annotator && event.key === place("") && last()) { // a reload before the previous page had stored its votes
    enter(last(), kept(last()));
  }
});

document.body.dataset.ready = "";
if (live) document.body.dataset.live = live.annotator ? "named" : "open";
if (live?.annotator || last()) resume(live?.annotator || last());
else show();
