"use strict";
// The marked page. Data: see tutelage/report/payload.py; texts.js comes first. One listener an event serves all tokens.
(() => {
  const data = JSON.parse(document.getElementById("marks-data").textContent);
  const $ = (id) => document.getElementById(id);
  const [TEXT, VALUES, WRITTEN, STUDENT, STUDENT_P, TEACHER, TEACHER_P, FORCED] = [0, 1, 2, 3, 4, 5, 6, 7];
  const WORST = 30;
  const CONTEXT = 6;
  const view = { run: 0, step: 0, measure: 0, shown: "order" };
  let flat = []; // every token on the page: {sequence, position, token, element}
  let worst = []; // places in flat, worst first
  let current = -1; // the place with the keyboard's focus
  let shown = -1; // the place the panel is about

  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  // In the direction of its own first letter, whatever the page's.
  const directed = (element) => {
    element.dir = "auto";
    return element;
  };
  const pre = (className, text) => directed(make("pre", className, data.texts[text]));
  const run = () => data.runs[view.run];
  const step = () => run().steps[view.step];
  const valueOf = (token) => token[VALUES][view.measure] ?? Infinity;
  const measureName = () => run().measures[view.measure];

  // A token as one sees it and as one hears it; bytes of a character are told apart by their ids.
  const seen = (text) => visible(data.texts[text]) + (text in data.ids ? ` ${data.ids[text]}` : "");
  const said = (text) => spoken(data.texts[text]) + (text in data.ids ? `, id ${data.ids[text]}` : "");
  const band = (value) => data.scales[measureName()].filter((threshold) => value >= threshold).length;

  function option(select, value, text) {
    const element = make("option", "", text);
    element.value = value;
    select.append(element);
  }

  function fillRuns() {
    data.runs.forEach((each, i) => option($("run"), i, each.name));
    $("run-label").hidden = data.runs.length < 2;
  }

  function fillControls() {
    const measures = $("measure");
    measures.replaceChildren();
    const names = run().measures;
    names.forEach((name, i) => { if (names.indexOf(name) === i) option(measures, i, name); });
    measures.value = view.measure;
    $("step").max = run().steps.length - 1;
    $("step").disabled = run().steps.length < 2;
    $("step").value = view.step;
    fillStep();
  }

  function fillStep() {
    $("step-value").textContent = step().step;
    $("step").setAttribute("aria-valuetext", `step ${step().step}`);
    const shown = $("shown");
    shown.replaceChildren();
    option(shown, "order", "all, in order");
    option(shown, "worst", "all, worst token first");
    option(shown, "mean", "all, highest mean first");
    step().sequences.forEach((sequence, i) => option(shown, i, `example ${sequence.id}`));
    if (![...shown.options].some((each) => each.value === view.shown)) view.shown = "order";
    shown.value = view.shown;
  }

  function fillScale() {
    const scale = data.scales[measureName()];
    const bounds = [0, ...scale];
    $("scale").replaceChildren(...bounds.map((low, i) => {
      const item = make("li");
      item.append(make("span", `token b${i}`, "token"),
        i === 0 ? `below ${scale[0]}` : i < scale.length ? `${low} to ${scale[i]}` : `${low} and more nats`);
      return item;
    }));
    if (!step().sequences.some((sequence) => sequence.tokens.some((token) => token[FORCED]))) return;
    const item = make("li");
    item.append(make("span", "token forced", "token"), "inserted by the task, not counted");
    $("scale").append(item);
  }

  // Of the tokens that somebody chose.
  const values = (sequence) => sequence.tokens.filter((token) => !token[FORCED]).map(valueOf);
  const ORDERS = {
    worst: (sequence) => values(sequence).reduce((top, value) => Math.max(top, value), 0),
    mean: (sequence) => values(sequence).reduce((sum, value) => sum + value, 0) / Math.max(1, values(sequence).length),
  };

  function chosen() {
    const sequences = step().sequences.map((sequence, index) => ({ sequence, index }));
    if (view.shown === "order") return sequences;
    if (view.shown in ORDERS) {
      const keys = step().sequences.map(ORDERS[view.shown]);
      return sequences.sort((a, b) => keys[b.index] - keys[a.index]);
    }
    return [sequences[Number(view.shown)]];
  }

  function others(sequence) {
    const box = make("div", "others");
    for (const [name, text] of [["teacher", sequence.teacher], ["reference", sequence.reference]]) {
      if (text === null) continue;
      box.append(make("div", "", name), pre("", text));
    }
    return box;
  }

  function drawTokens(sequence, box) {
    const count = sequence.tokens.length;
    sequence.tokens.forEach((token, position) => {
      const text = data.texts[token[TEXT]];
      const value = valueOf(token);
      const element = make("span", token[FORCED] ? "token forced" : `token b${band(value)}`);
      const spaces = text.match(/^ */)[0].length;
      if (spaces) element.append(make("span", "space", visible(text.slice(0, spaces))));
      if (spaces < text.length || !text) element.append(visible(text.slice(spaces)));
      element.setAttribute("role", "option");
      const what = token[FORCED] ? "inserted by the task" : `${number(value)} nats`;
      element.setAttribute("aria-label", `${said(token[TEXT])}, ${what}, token ${position + 1} of ${count}`);
      element.tabIndex = position ? -1 : 0; // every box can be reached with Tab
      element.dataset.i = flat.length;
      flat.push({ sequence, position, token, element });
      box.append(element);
      if (text.includes("\n")) box.append(document.createElement("br"));
    });
  }

  // The sequence in a line: how long it is and how it ended.
  function about(sequence) {
    const count = sequence.tokens.length;
    const forced = sequence.tokens.filter((token) => token[FORCED]).length;
    const itself = sequence.tokens.at(-1)?.[FORCED] ? "ended behind a stop text" : "ended by itself";
    const end = { stop: itself, length: "cut at the limit", data: "from the data" }[sequence.finish];
    return `example ${sequence.id} · ${count} tokens${forced ? `, ${forced} of them inserted` : ""} · ${end} · ` +
      `mean ${number(ORDERS.mean(sequence))} nats`;
  }

  function drawSequence({ sequence }) {
    const card = make("article", "sequence");
    card.append(make("header", "", about(sequence)), pre("prompt", sequence.prompt));
    // To be read aloud as a text; the tokens below it are a list of choices.
    const text = sequence.completion === null ? sequence.tokens.map((token) => data.texts[token[TEXT]]).join("")
      : data.texts[sequence.completion];
    const plain = make("p", "unseen", `${sequence.source}: `);
    plain.append(make("bdi", "", text));
    card.append(plain);
    const box = directed(make("div", "tokens"));
    box.setAttribute("role", "listbox");
    box.setAttribute("aria-orientation", "horizontal");
    box.setAttribute("aria-label", `Tokens the ${sequence.source} wrote for example ${sequence.id}`);
    drawTokens(sequence, box);
    card.append(box);
    if (sequence.teacher !== null || sequence.reference !== null) card.append(others(sequence));
    return card;
  }

  function drawWorst() {
    worst = flat.map((_, i) => i).filter((i) => !flat[i].token[FORCED])
      .sort((a, b) => valueOf(flat[b].token) - valueOf(flat[a].token)).slice(0, WORST);
    $("worst").replaceChildren(...worst.map((i) => {
      const { sequence, position, token } = flat[i];
      const before = sequence.tokens.slice(Math.max(0, position - CONTEXT), position);
      const button = make("button");
      button.type = "button";
      button.dataset.i = i;
      const context = make("span", "context");
      const words = make("bdi", "", before.map((each) => visible(data.texts[each[TEXT]])).join(""));
      words.append(make("b", "", seen(token[TEXT])));
      context.append(words);
      button.append(context, make("span", "", number(valueOf(token))));
      button.setAttribute("aria-label",
        `${said(token[TEXT])}, ${number(valueOf(token))} nats, example ${sequence.id}, token ${position + 1}`);
      const item = make("li");
      item.append(button);
      return item;
    }));
  }

  // Data sets count their examples alike: the same one has the same prompt.
  const same = (a, b) => a.sequence.id === b.sequence.id && a.sequence.prompt === b.sequence.prompt && a.position === b.position;

  // Redraws the tokens; the token under the keyboard stays the same one of the same example where it still exists.
  function draw() {
    const held = flat[current];
    const inPanel = $("panel").contains($("tops"));
    flat = [];
    fillScale();
    $("sequences").replaceChildren(...chosen().map(drawSequence));
    drawWorst();
    const again = held ? flat.findIndex((each) => same(each, held)) : -1;
    current = -1;
    mark(again >= 0 ? again : 0);
    if (again >= 0 && inPanel) show(again);
    else clearPanel();
  }

  function mark(i) {
    const old = flat[current];
    if (old) {
      for (const name of ["aria-selected", "aria-describedby"]) old.element.removeAttribute(name);
    }
    current = flat.length ? i : -1;
    const now = flat[current];
    if (!now) return;
    for (const each of now.element.parentElement.querySelectorAll("[tabindex='0']")) each.tabIndex = -1;
    now.element.tabIndex = 0;
    now.element.setAttribute("aria-selected", "true");
    now.element.setAttribute("aria-describedby", "tops");
  }

  function go(i) {
    if (!flat[i]) return;
    mark(i);
    show(i);
    flat[i].element.focus({ preventScroll: true });
    const { top, bottom } = flat[i].element.getBoundingClientRect();
    const panel = $("panel");
    const covered = getComputedStyle(panel).position === "fixed" ? panel.offsetHeight : 0;
    if (top < 0 || bottom > innerHeight - covered) scrollBy({ top: top - (innerHeight - covered) / 2, behavior: "instant" });
  }

  function rowHead(className, text, label) {
    const head = make("th", className, text);
    head.scope = "row";
    if (label) head.setAttribute("aria-label", label);
    return head;
  }

  function topTable(title, kind, texts, probabilities, own) {
    const table = make("table", kind);
    table.append(make("caption", "", title));
    texts.forEach((text, rank) => {
      const row = make("tr", text === own ? "written" : "");
      const bar = make("span", "bar");
      bar.style.width = `${Math.max(1, 100 * probabilities[rank])}%`;
      const cell = make("td", "bar-cell");
      cell.setAttribute("aria-hidden", "true");
      cell.append(bar);
      const head = rowHead("text", "", said(text) + (text === own ? ", this token" : ""));
      head.append(make("bdi", "", seen(text)));
      row.append(head, make("td", "number", percent(probabilities[rank])), cell);
      table.append(row);
    });
    return table;
  }

  function show(i) {
    shown = i;
    const { sequence, position, token } = flat[i];
    const panel = $("panel");
    const values = make("table", "values");
    const names = run().measures;
    names.forEach((name, m) => {
      if (names.indexOf(name) !== m) return;
      const row = make("tr");
      row.append(rowHead("", name), make("td", "", `${number(token[VALUES][m] ?? Infinity)} nats`));
      values.append(row);
    });
    const tops = make("div", "tops");
    tops.id = "tops";
    const [own, theirs] = token[WRITTEN];
    tops.append(
      topTable(`student, ${percent(own)} for this token`, "student", token[STUDENT], token[STUDENT_P], token[TEXT]),
      topTable(`teacher, ${percent(theirs)} for this token`, "teacher", token[TEACHER], token[TEACHER_P], token[TEXT]));
    const close = make("button", "close", "×");
    close.type = "button";
    close.setAttribute("aria-label", "Close");
    close.addEventListener("click", clearPanel);
    const title = make("h3");
    title.setAttribute("aria-label", said(token[TEXT]));
    title.append(make("bdi", "", seen(token[TEXT])));
    const inserted = token[FORCED] ? ", inserted by the task: neither model chose it, no mean counts it" : "";
    panel.replaceChildren(close, title,
      make("p", "hint", `example ${sequence.id}, token ${position + 1} of ${sequence.tokens.length}${inserted}`), values, tops);
    panel.classList.add("filled");
  }

  const emptyPanel = [...$("panel").childNodes];
  function clearPanel() {
    shown = -1;
    $("panel").replaceChildren(...emptyPanel);
    $("panel").classList.remove("filled");
  }

  // The token on the next or previous line that lies nearest.
  function line(direction) {
    const from = flat[current].element.getBoundingClientRect();
    const centre = from.left + from.width / 2;
    let best = current;
    let row = null;
    let distance = Infinity;
    for (let i = current + direction; flat[i]; i += direction) {
      const box = flat[i].element.getBoundingClientRect();
      const away = direction > 0 ? box.top >= from.bottom - 2 : box.bottom <= from.top + 2;
      if (!away) continue;
      row ??= box.top;
      if (Math.abs(box.top - row) > 2) break;
      const off = Math.abs(box.left + box.width / 2 - centre);
      if (off < distance) [best, distance] = [i, off];
    }
    return best;
  }

  function end(direction) {
    let i = current;
    while (flat[i + direction] && flat[i + direction].sequence === flat[current].sequence) i += direction;
    return i;
  }

  function nextWorst(direction) {
    const rank = worst.indexOf(current);
    const next = rank < 0 ? 0 : rank + direction;
    return worst[Math.min(Math.max(next, 0), worst.length - 1)];
  }

  // To the right: on, or back where the text runs from right to left.
  function right() {
    return getComputedStyle(flat[current].element.parentElement).direction === "rtl" ? -1 : 1;
  }

  const KEYS = {
    ArrowRight: () => current + right(), ArrowLeft: () => current - right(), ArrowDown: () => line(1), ArrowUp: () => line(-1),
    Home: () => end(-1), End: () => end(1), n: () => nextWorst(1), p: () => nextWorst(-1),
  };
  const place = (event) => event.target.closest("[data-i]")?.dataset.i;

  function listen() {
    const tokens = $("sequences");
    tokens.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || place(event) === undefined) return;
      if (event.key === "Escape") { event.target.blur(); clearPanel(); return; }
      const move = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
      if (!move) return;
      event.preventDefault();
      go(move());
    });
    tokens.addEventListener("focusin", (event) => {
      const i = place(event);
      if (i === undefined || (Number(i) === shown && Number(i) === current)) return;
      mark(Number(i));
      show(Number(i));
    });
    // A narrow window shows the panel over the page: it goes with the focus.
    for (const part of [tokens, $("panel")]) part.addEventListener("focusout", (event) => {
      if (event.relatedTarget?.closest("#sequences, #panel")) return;
      $("panel").classList.remove("filled");
      shown = -1;
    });
    $("panel").addEventListener("keydown", (event) => {
      if (event.key === "Escape") clearPanel();
    });
    tokens.addEventListener("pointerover", (event) => {
      const i = place(event);
      if (i !== undefined && event.pointerType === "mouse") show(Number(i));
    });
    tokens.addEventListener("pointerleave", () => {
      if (flat[current]?.element === document.activeElement) show(current);
    });
    $("worst").addEventListener("click", (event) => {
      const i = place(event);
      if (i !== undefined) go(Number(i));
    });
    $("controls").addEventListener("submit", (event) => event.preventDefault());
    $("controls").addEventListener("input", (event) => change(event.target));
  }

  function change(control) {
    if (control.id === "run") {
      Object.assign(view, { run: Number(control.value), step: 0, measure: 0, shown: "order" });
      view.step = run().steps.length - 1;
      fillControls();
    } else if (control.id === "measure") view.measure = Number(control.value);
    else if (control.id === "shown") view.shown = control.value;
    else if (control.id === "step") {
      view.step = Number(control.value);
      fillStep();
    }
    draw();
  }

  view.step = run().steps.length - 1;
  if (matchMedia("(max-width: 860px)").matches) $("worst-box").open = false;
  $("marks-app").hidden = false;
  fillRuns();
  fillControls();
  listen();
  draw();
})();
