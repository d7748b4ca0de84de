// Small things about the document that every part needs.

export const at = (id) => document.getElementById(id);

export function made(name, properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

// Not `disabled`: a button that is pressed with the keyboard would lose the focus.
export const enable = (button, yes) => button.setAttribute("aria-disabled", String(!yes));

document.addEventListener("click", (event) => {
  if (event.target.closest("[aria-disabled='true']")) event.stopImmediatePropagation();
}, true);

export const say = (line) => { at("said").textContent = line; };

export const short = (text, most = 200) => (text.length > most ? `${text.slice(0, most)} ...` : text);

export const count = (number, word) => `${number ?? "?"} ${word}${number === 1 ? "" : "s"}`;
