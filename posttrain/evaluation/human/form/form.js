"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const letters = data.letters;
const kept = "posttrain " + data.sheet;
const state = load();
let current = firstOpen(0) ?? 0;

function load() {
  const fresh = data.rows.map(() => ({ ratings: letters.map(() => ""), preferred: "", notes: "" }));
  let found = null;
  try {
    found = JSON.parse(localStorage.getItem(kept));
  } catch (error) {
    tell("This browser keeps nothing between visits: export before you close the page.");
  }
  return Array.isArray(found) && found.length === fresh.length ? found : fresh;
}

function save() {
  try {
    localStorage.setItem(kept, JSON.stringify(state));
  } catch (error) {
    tell("This browser keeps nothing between visits: export before you close the page.");
  }
  progress();
}

function tell(words) {
  document.getElementById("told").textContent = words;
}

function isDone(entry) {
  return entry.preferred !== "" && entry.ratings.every((rating) => rating !== "");
}

function firstOpen(from) {
  for (let step = 0; step < state.length; step++) {
    const place = (from + step) % state.length;
    if (!isDone(state[place])) return place;
  }
  return null;
}

function bare(cell) {
  return cell.startsWith("'") ? cell.slice(1) : cell;
}

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function text(content) {
  const made = element("div", { className: content.trim() === "" ? "text empty" : "text", dir: "auto" });
  made.textContent = content.trim() === "" ? (content === "" ? "(empty)" : "(nothing but white space)") : content;
  return made;
}

function choices(group, words, values, value, choose) {
  const made = element("fieldset", {}, element("legend", { textContent: words }));
  for (const [label, of] of values) {
    const input = element("input", { type: "radio", name: group, value: of, checked: of === value });
    input.addEventListener("change", () => choose(of));
    made.append(element("label", { className: "choice" }, input, label));
  }
  return made;
}

function show(place) {
  current = Math.min(Math.max(place, 0), state.length - 1);
  const row = data.rows[current];
  const entry = state[current];
  const scale = [];
  for (let rating = data.least; rating <= data.most; rating++) scale.push([String(rating), String(rating)]);
  const answers = letters.map((letter, number) => element("section", { className: "answer" },
    element("h2", { textContent: "Answer " + letter }),
    text(bare(row[3 + number])),
    choices("rating_" + letter, "Rating " + letter, scale, entry.ratings[number], (value) => {
      entry.ratings[number] = value;
      save();
    })));
  const notes = element("textarea", { value: entry.notes, id: "notes" });
  notes.addEventListener("input", () => {
    entry.notes = notes.value;
    save();
  });
  const preferred = choices("preferred", "Preferred", [...letters.map((letter) => [letter, letter]), ["tie", "tie"]], entry.preferred, (value) => {
    entry.preferred = value;
    save();
  });
  preferred.className = "preferred";
  const reference = bare(row[2]) === "" ? [] : [element("h2", { textContent: "Reference" }), text(bare(row[2]))];
  document.getElementById("item").replaceChildren(
    element("h2", { textContent: `Prompt ${current + 1} of ${state.length}` }), text(bare(row[1])), ...reference,
    element("div", { className: "answers" }, ...answers), preferred,
    element("h2", {}, element("label", { textContent: "Notes", htmlFor: "notes" })), notes);
  progress();
  window.scrollTo(0, 0);
}

function progress() {
  const done = state.filter(isDone).length;
  document.getElementById("count").textContent = `${done} of ${state.length} finished`;
  Object.assign(document.getElementById("progress"), { max: state.length, value: done });
  const buttons = document.getElementById("items").children;
  state.forEach((entry, place) => {
    buttons[place].className = isDone(entry) ? "done" : "";
    buttons[place].setAttribute("aria-label", `item ${place + 1}, ${isDone(entry) ? "finished" : "open"}`);
    if (place === current) buttons[place].setAttribute("aria-current", "true");
    else buttons[place].removeAttribute("aria-current");
  });
}

function quoted(cell) {
  return '"' + cell.replaceAll('"', '""') + '"';
}

function csv() {
  const rows = data.rows.map((row, place) => {
    const entry = state[place];
    const filled = [...entry.ratings, entry.preferred, entry.notes === "" ? "" : "'" + entry.notes];
    return [...row.slice(0, 3 + letters.length), ...filled, ...row.slice(-2)];
  });
  return "\ufeff" + [data.header, ...rows].map((row) => row.map(quoted).join(",") + "\r\n").join("");
}

function exportSheet() {
  const link = element("a", { href: URL.createObjectURL(new Blob([csv()], { type: "text/csv;charset=utf-8" })), download: data.file });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  const open = state.filter((entry) => !isDone(entry)).length;
  tell(open === 0 ? `Exported as ${data.file}. Thank you.` : `Exported, but ${open} of ${state.length} items are not finished.`);
}

function goOpen() {
  const place = firstOpen(current + 1);
  if (place === null) tell("All items are finished: export the CSV.");
  else show(place);
}

function rate(value) {
  const focused = document.activeElement?.name?.startsWith("rating_") ? letters.indexOf(document.activeElement.name.slice(7)) : -1;
  const place = focused >= 0 ? focused : state[current].ratings.indexOf("");
  if (place >= 0) press("rating_" + letters[place], value);
}

function press(group, value) {
  const input = [...document.getElementsByName(group)].find((one) => one.value === value);
  if (input) input.click();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "TEXTAREA") return;
  const key = event.key.toUpperCase();
  if (letters.includes(key)) press("preferred", key);
  else if (key === "T") press("preferred", "tie");
  else if (/^[0-9]$/.test(key)) rate(key);
  else if (key === "N") show(current + 1);
  else if (key === "P") show(current - 1);
  else if (key === "O") goOpen();
  else return;
  event.preventDefault();
});

state.forEach((entry, place) => {
  const button = element("button", { textContent: place + 1 });
  button.addEventListener("click", () => show(place));
  document.getElementById("items").append(button);
});
document.getElementById("previous").addEventListener("click", () => show(current - 1));
document.getElementById("next").addEventListener("click", () => show(current + 1));
document.getElementById("open").addEventListener("click", goOpen);
document.getElementById("export").addEventListener("click", exportSheet);
show(current);
