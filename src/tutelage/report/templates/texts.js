"use strict";
// Tokens and numbers of the marked page as something to see and as something to say.
const { visible, spoken, number, percent } = (() => {
  const CHARACTERS = {
    " ": ["·", "space"], "\n": ["⏎", "line end"], "\t": ["⇥", "tab"], "\r": ["␍", "carriage return"],
    "\u007f": ["␡", "delete"], "\u00a0": ["⍽", "no-break space"], "\u3000": ["□", "ideographic space"],
    "\ufffd": ["\ufffd", "incomplete character"],
  };
  // A text of nothing else has no character left as it is. Joiners and soft hyphens inside a word are its spelling.
  const BLANK = /^[\p{Z}\p{Cc}\p{Cf}]+$/u;
  const ANY = /./gsu;
  // Controls, spaces but the usual one, and what would turn the reading order round.
  const NOTED = /[\p{Cc}\p{Zl}\p{Zp}\u202a-\u202e\u2066-\u2069\ufffd]|(?! )\p{Zs}/gu;

  const code = (c) => `U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
  const picture = (c) => CHARACTERS[c]?.[0] ?? (c < " " ? String.fromCharCode(0x2400 + c.charCodeAt(0)) : `⟨${code(c)}⟩`);
  const name = (c) => ` ${CHARACTERS[c]?.[1] ?? code(c)} `;

  const visible = (text) => text.replace(BLANK.test(text) ? ANY : NOTED, picture).replaceAll(" ", "·") || "∅";
  // The space before a word goes without saying.
  const spoken = (text) => {
    const words = BLANK.test(text) ? text.replace(ANY, name) : text.replace(/^ /, "").replace(NOTED, name);
    return words.replace(/ +/g, " ").trim() || "empty";
  };
  const number = (value) => {
    if (value === Infinity) return "∞";
    if (value !== 0 && value < 0.001) return value.toExponential(1);
    return Number(value.toPrecision(3)).toString();
  };
  const percent = (p) => (p > 0 && p < 0.001 ? "<0.1%" : `${(100 * p).toFixed(1)}%`);
  return { visible, spoken, number, percent };
})();
