// The address as a memory: everything that makes a result, behind the #, so that no server sees it.

export const write = (state) => history.replaceState(null, "", `#${new URLSearchParams(state)}`);

// null where the address carries nothing.
export function read() {
  const state = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  return ["rewrite", "fill", "continue", "chat"].includes(state.do) ? state : null;
}
