"use strict";
// The marked page. Data: see tutelage/report/payload.py. One listener an event serves all tokens.
(() => {
  const data = JSON.parse(document.getElementById("marks-data").textContent);
  const $ = (id) => document.getElementById(id);
  const [TEXT, VALUES, WRITTEN, STUDENT, STUDENT_P, TEACHER, TEACHER_P] = [0, 1, 2, 3, 4, 5, 6];
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
  const run = () => data.runs[view.run];
  const step = () => run().steps[view.step];
  const valueOf = (token) => token[VALUES][view.measure] ?? Infinity;
  const measureName = () => run().measures[view.measure];

  // Spaces, line ends and control characters as something one can see.
  const visible = (text) =>
    text
      .replaceAll(" ", "·").replaceAll("\n", "⏎").replaceAll("\t", "⇥")
      .replace(/[\u0000-\u001f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0)))
      .replaceAll("\u007f", "␡") || "∅";
  const spoken = (text) => {
    const names = { " ": "space ", "\n": "line end ", "\t": "tab " };
    return text.trim() ? text.replace(/^ /, "").replace(/[\n\t]/g, (c) => names[c])
      : text.replace(/[ \n\t]/g, (c) => names[c]).trim() || "empty";
  };
  const number = (value) => {
    if (value === Infinity) return "∞";
    if (value !== 0 && value < 0.001) return value.toExponential(1);
    return Number(value.toPrecision(3)).toString();
  };
  const percent = (p) => (p > 0 && p < 0.001 ? "<0.1%" : `${(100 * p).toFixed(1)}%`);
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
    option(shown, "worst", "all, worst first");
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
  }

  const mean = (sequence) => {
    const values = sequence.tokens.map(valueOf);
    return values.reduce((sum, value) => sum + value, 0) / Math.max(1, values.length);
  };

  function chosen() {
    const sequences = step().sequences.map((sequence, index) => ({ sequence, index }));
    if (view.shown === "order") return sequences;
    if (view.shown === "worst") {
      const means = sequences.map(({ sequence }) => mean(sequence));
      return sequences.sort((a, b) => means[b.index] - means[a.index]);
    }
    return [sequences[Number(view.shown)]];
  }

  function others(sequence) {
    const box = make("div", "others");
    for (const [name, text] of [["teacher", sequence.teacher], ["reference", sequence.reference]]) {
      if (text === null) continue;
      box.append(make("div", "", name), make("pre", "", data.texts[text]));
    }
    return box;
  }

  function drawTokens(sequence, box) {
    const count = sequence.tokens.length;
    sequence.tokens.forEach((token, position) => {
      const text = data.texts[token[TEXT]];
      const value = valueOf(token);
      const element = make("span", `token b${band(value)}`);
      const spaces = text.match(/^ */)[0].length;
      if (spaces) element.append(make("span", "space", visible(text.slice(0, spaces))));
      if (spaces < text.length || !text) element.append(visible(text.slice(spaces)));
      element.setAttribute("role", "option");
      element.setAttribute("aria-label", `${spoken(text)}, ${number(value)} nats, token ${position + 1} of ${count}`);
      element.tabIndex = -1;
      element.dataset.i = flat.length;
      flat.push({ sequence, position, token, element });
      box.append(element);
      if (text.includes("\n")) box.append(document.createElement("br"));
    });
  }

  function drawSequence({ sequence }) {
    const card = make("article", "sequence");
    const end = { stop: "ended by itself", length: "cut at the limit", data: "from the data" }[sequence.finish];
    card.append(make("header", "",
      `example ${sequence.id} · ${sequence.tokens.length} tokens · ${end} · mean ${number(mean(sequence))} nats`));
    card.append(make("pre", "prompt", data.texts[sequence.prompt]));
    const box = make("div", "tokens");
    box.setAttribute("role", "listbox");
    box.setAttribute("aria-orientation", "horizontal");
    box.setAttribute("aria-label", `Tokens the ${sequence.source} wrote for example ${sequence.id}`);
    drawTokens(sequence, box);
    card.append(box);
    if (sequence.teacher !== null || sequence.reference !== null) card.append(others(sequence));
    return card;
  }

  function drawWorst() {
    worst = flat.map((_, i) => i).sort((a, b) => valueOf(flat[b].token) - valueOf(flat[a].token)).slice(0, WORST);
    $("worst").replaceChildren(...worst.map((i) => {
      const { sequence, position, token } = flat[i];
      const before = sequence.tokens.slice(Math.max(0, position - CONTEXT), position);
      const button = make("button");
      button.type = "button";
      button.dataset.i = i;
      const context = make("span", "context");
      const words = make("bdi", "", before.map((each) => visible(data.texts[each[TEXT]])).join(""));
      words.append(make("b", "", visible(data.texts[token[TEXT]])));
      context.append(words);
      button.append(context, make("span", "", number(valueOf(token))));
      button.setAttribute("aria-label",
        `${spoken(data.texts[token[TEXT]])}, ${number(valueOf(token))} nats, example ${sequence.id}, token ${position + 1}`);
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
      old.element.tabIndex = -1;
      for (const name of ["aria-selected", "aria-describedby"]) old.element.removeAttribute(name);
    }
    current = flat.length ? i : -1;
    const now = flat[current];
    if (!now) return;
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

  function topTable(title, kind, texts, probabilities, written) {
    const table = make("table", kind);
    table.append(make("caption", "", title));
    texts.forEach((text, rank) => {
      const row = make("tr", text === written ? "written" : "");
      const bar = make("span", "bar");
      bar.style.width = `${Math.max(1, 100 * probabilities[rank])}%`;
      const cell = make("td", "bar-cell");
      cell.append(bar);
      row.append(make("td", "text", visible(data.texts[text])), make("td", "number", percent(probabilities[rank])), cell);
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
      row.append(make("th", "", name), make("td", "", `${number(token[VALUES][m] ?? Infinity)} nats`));
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
    panel.replaceChildren(close,
      make("h3", "", visible(data.texts[token[TEXT]])),
      make("p", "hint", `example ${sequence.id}, token ${position + 1} of ${sequence.tokens.length}`), values, tops);
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

  const KEYS = {
    ArrowRight: () => current + 1, ArrowLeft: () => current - 1, ArrowDown: () => line(1), ArrowUp: () => line(-1),
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
    tokens.addEventListener("focusout", (event) => {
      if (event.relatedTarget?.closest("#sequences, #panel")) return;
      $("panel").classList.remove("filled");
      shown = -1;
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
