// The frame of the page: which view the address asks for, live updates, the token, and what is said when something fails.

import { ApiError, token } from "./api.js";
import { groupsAddress, tableAddress } from "./addresses.js";
import { attribute, h, text } from "./dom.js";
import { clock } from "./format.js";
import { GroupView } from "./group.js";
import { GroupsView } from "./groups.js";
import { Live } from "./live.js";
import { Overview } from "./overview.js";
import { TableView } from "./table.js";

const byId = (id) => document.getElementById(id);
const [main, crumbs, pulse, trouble, dialog] = ["main", "crumbs", "pulse", "trouble", "token-dialog"].map(byId);
const live = new Live(told);
const scrolled = new Map(); // address -> how far its view was scrolled
let view = null;
let shown = null; // its address
let list = null; // the groups that a group was opened from
let declined = false; // to enter a token: nobody is asked again at every refresh

function route() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [run, table, groups, groupId] = path.split("/").map(decoded);
  if (!run || !table) return new Overview();
  const at = { run, table };
  if (groups !== "groups") return new TableView(at);
  if (groupId) return new GroupView(at, groupId);
  return new GroupsView(at, new URLSearchParams(query));
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function open() {
  if (location.hash === "#main") return;
  if (view) scrolled.set(view.address ?? shown, scrollY);
  const from = view;
  const back = list && list.address === location.hash;
  view = back ? list : route();
  view.asked = () => live.now();
  shown = location.hash;
  main.replaceChildren(view.element);
  document.title = `${view.title} · groupreplay`;
  if (view instanceof GroupsView) list = view;
  else if (!(view instanceof GroupView)) list = null;
  showCrumbs();
  const row = back && from instanceof GroupView ? rowOf(from) : null;
  if (row) row.focus({ preventScroll: true });
  else if (from) main.focus({ preventScroll: true });
  scrollTo(0, back ? (scrolled.get(shown) ?? 0) : 0);
  live.show((signal) => view.refresh(signal));
}

function rowOf(group) {
  return [...main.querySelectorAll("a.row")].find((link) => link.textContent === group.groupId);
}

function showCrumbs() {
  const links = [["#/", "tables"]];
  if (view.at) {
    links.push([tableAddress(view.at), `${view.at.run}/${view.at.table}`]);
    if (!(view instanceof TableView)) links.push([list?.address ?? groupsAddress(view.at), "groups"]);
  }
  if (view instanceof GroupView) links.push([location.hash, view.groupId]);
  const here = links.length - 1;
  crumbs.replaceChildren(...links.map(([href, name], index) => h("a", { href, "aria-current": index === here ? "page" : false }, name)));
}

/** Say how the last refresh ended; what is shown stays. */
function told(error) {
  attribute(main, "aria-busy", "false");
  if (!error) {
    showPulse(live.paused ? "paused" : "fine", live.paused ? "paused" : `as of ${clock(Date.now())}`);
    if (!performance.getEntriesByName("shown").length) performance.mark("shown");
    trouble.hidden = true;
    declined = false;
    return;
  }
  if (error.name === "AbortError" && live.sleeping) return;
  showPulse("failed", "not up to date");
  if (error instanceof ApiError && error.status === 401 && !declined) {
    trouble.hidden = true;
    askForToken(token.get() ? error.message : "");
    return;
  }
  text(trouble, error instanceof ApiError ? error.message : `The service cannot be reached (${error.message}). Trying again.`);
  trouble.hidden = false;
}

function showPulse(look, words) {
  attribute(pulse, "class", `pulse ${look}`);
  text(pulse, words);
}

// The token

function askForToken(why) {
  text(byId("token-error"), why);
  if (dialog.open) return;
  byId("token-input").value = "";
  dialog.showModal();
  byId("token-input").focus();
}

byId("token-form").addEventListener("submit", () => {
  declined = false;
  token.set(byId("token-input").value.trim());
  byId("token-input").value = "";
  live.now();
});
byId("token-forget").addEventListener("click", () => {
  declined = false;
  token.forget();
  dialog.close();
  live.now();
});
byId("token-cancel").addEventListener("click", () => {
  declined = true;
  dialog.close();
});
dialog.addEventListener("cancel", () => {
  declined = true;
});
byId("token").addEventListener("click", () => askForToken(""));

// The frame

byId("live").addEventListener("click", () => {
  live.pause(!live.paused);
  attribute(byId("live"), "aria-pressed", String(!live.paused));
  showPulse("paused", live.paused ? "paused" : "");
});
byId("skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || dialog.open || event.defaultPrevented) return;
  if (view instanceof GroupView) location.hash = list?.address ?? groupsAddress(view.at);
  else if (view instanceof GroupsView) location.hash = tableAddress(view.at);
  else if (view.at) location.hash = "#/";
});
addEventListener("hashchange", open);
history.scrollRestoration = "manual";
open();
