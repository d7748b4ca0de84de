// The address as a memory: everything that makes a result, behind the #, so that no server sees it.

export function write(state) {
  try {
    history.replaceState(null, "", `#${new URLSearchParams(state)}`);
  } catch {
    history.replaceState(null, "", "#"); // longer than the browser lets an address be
  }
}

// null where the address carries nothing.
export function read() {
  const state = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  return ["rewrite", "fill", "continue", "chat"].includes(state.do) ? state : null;
}
