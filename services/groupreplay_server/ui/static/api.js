// Reads the service's REST API, with the token of this tab where there is one.

const TOKEN = "groupreplay-token";
const TIMEOUT_MS = 20000;
const ROOT = new URL("../v1/", document.baseURI);

/** A call that failed: the service's own words and reason. */
export class ApiError extends Error {
  constructor(status, reason, detail) {
    super(detail);
    this.status = status;
    this.reason = reason;
  }
}

export const token = {
  get: () => sessionStorage.getItem(TOKEN) ?? "",
  set: (value) => sessionStorage.setItem(TOKEN, value),
  forget: () => sessionStorage.removeItem(TOKEN),
};

async function call(path, { query = {}, body, signal } = {}) {
  const url = new URL(path, ROOT);
  for (const [name, value] of Object.entries(query)) {
    for (const item of [value].flat()) {
      if (item !== undefined && item !== null && item !== "") url.searchParams.append(name, item);
    }
  }
  const headers = {};
  if (token.get()) headers.Authorization = `Bearer ${token.get()}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const limits = [AbortSignal.timeout(TIMEOUT_MS), signal].filter(Boolean);
  const response = await fetch(url, {
    method: body === undefined ? "GET" : "POST",
    headers,
    body: body === undefined ? undefined : JSON.stringify(body),
    cache: "no-store",
    credentials: "same-origin",
    redirect: "error",
    signal: AbortSignal.any(limits),
  });
  if (!response.ok) throw await problem(response);
  return response;
}

async function problem(response) {
  const found = await response.json().catch(() => ({}));
  return new ApiError(response.status, found.reason ?? "", found.detail ?? `the service answered ${response.status}`);
}

const json = async (path, options) => (await call(path, options)).json();
const tablePath = ({ run, table }) => `runs/${encodeURIComponent(run)}/tables/${encodeURIComponent(table)}`;

export const listTables = async (signal) => (await json("tables", { signal })).tables;

export const getPolicy = async (run, signal) => (await json(`runs/${encodeURIComponent(run)}/policy`, { signal })).policy;

export const diagnose = (at, batchSize, signal) =>
  json(`${tablePath(at)}/diagnosis`, { query: { batch_size: batchSize }, signal });

export const tableHistory = (at, query, signal) => json(`${tablePath(at)}/history`, { query, signal });

export const listGroups = (at, query, signal) => json(`${tablePath(at)}/groups`, { query, signal });

export async function locateGroup(at, groupId, signal) {
  return (await json(`${tablePath(at)}/groups/locate`, { body: { group_ids: [groupId] }, signal })).states[0];
}

/** Return {group, delivery, log_ratios where there are some}, or null where the table has no such group; columns are base64. */
export async function readGroup(at, groupId, signal) {
  const path = `${tablePath(at)}/groups/read?columns=base64`;
  const response = await call(path, { body: { group_ids: [groupId], log_ratios: true }, signal });
  let found = null;
  for (const line of (await response.text()).split("\n").filter(Boolean)) {
    const item = JSON.parse(line);
    if (item.error) throw new ApiError(item.error.status, item.error.reason, item.error.detail);
    if (item.group) found = item;
  }
  return found;
}
