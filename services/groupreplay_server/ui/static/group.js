// One group: its prompt, and its responses side by side, coloured by reward, their tokens shaded by what is known of each.

import { listGroups, locateGroup, readGroup } from "./api.js";
import { decode, imagesOf } from "./columns.js";
import { attribute, h, sync, text } from "./dom.js";
import { ago, mean, number, plural } from "./format.js";
import { rewardLook } from "./groups.js";
import { LOGPROBS, aboutRatios, legend, options, readShadings, tokenLook, tokenTitle } from "./shadings.js";

const TOKENS_SHOWN = 600; // of a response, until more is asked for
const TEXT_SHOWN = 8000;
const PAGES_SEARCHED = 4;

export class GroupView {
  constructor(at, groupId) {
    this.at = at;
    this.groupId = groupId;
    this.title = groupId;
    this.loaded = false;
    this.facts = h("dl", { class: "facts" });
    this.note = h("p", { class: "muted", role: "status" }, "Reading the group …");
    this.prompt = h("section", { class: "panel prompt", "aria-labelledby": "prompt-title" });
    this.responses = h("div", { class: "responses" });
    this.shade = h("select", { change: () => this.#shadeAll() });
    this.scale = h("span", { class: "scale" });
    this.controls = h("div", { class: "controls", hidden: true }, h("label", { class: "inline" }, "Shade tokens by ", this.shade), this.scale);
    this.told = h("p", { class: "muted told", hidden: true });
    this.element = h(
      "div",
      {},
      h("h1", {}, groupId),
      this.facts,
      this.note,
      h("div", { class: "reading" }, this.prompt, h("div", {}, this.controls, this.told, this.responses)),
    );
  }

  /** Groups never change: what they say is read once, where they are is read again, and so is what is fed back. */
  async refresh(signal) {
    if (!this.loaded) {
      const found = await readGroup(this.at, this.groupId, signal);
      if (!found) {
        const state = await locateGroup(this.at, this.groupId, signal);
        text(this.note, state === "group_gone" || state === "gone" ? "This group was in the table, and left." : "The table has no such group.");
        return;
      }
      this.group = found.group;
      this.loaded = true;
      this.#show(found.log_ratios);
    }
    const listed = await this.#find(signal);
    this.#showFacts(listed);
    await this.#followFeedback(listed, signal);
  }

  /** Read the group again once more was fed back: each commit that uses it tells KL or ESS, or counts. */
  async #followFeedback(listed, signal) {
    if (!listed) return;
    const told = [listed.state, listed.times_sampled, listed.kl, listed.ess].join(" ");
    if (this.feedback !== undefined && this.feedback !== told) {
      const found = await readGroup(this.at, this.groupId, signal);
      if (!found) return;
      this.#readColumns(found.log_ratios);
      this.#shadeAll();
    }
    this.feedback = told;
  }

  /** Return the group as the listing has it, with what was fed back; null where it left. */
  async #find(signal) {
    const { prompt_id, policy_version_min: version } = this.group;
    let cursor = "";
    for (let page = 0; page < PAGES_SEARCHED; page += 1) {
      const query = { prompt_id, policy_version_from: version, policy_version_to: version, limit: 100, cursor };
      const found = await listGroups(this.at, query, signal);
      const own = found.groups.find((it) => it.header.group_id === this.groupId);
      if (own) return own;
      cursor = found.next_cursor;
      if (!cursor) return null;
    }
    return null;
  }

  #showFacts(listed) {
    const { group } = this;
    const [rewards, versions] = [group.rewards, new Set([group.policy_version_min, group.policy_version_max])];
    const facts = [
      ["State", listed ? `${listed.state}${listed.lease_id ? ` in ${listed.lease_id}` : ""}` : "not listed: it left, or is not among the first"],
      ["Rewards", `${plural(rewards.length, "response")}, mean ${number(mean(rewards))}`],
      ["Reward variance", listed ? (listed.effective ? "yes: effective" : "no: no gradient") : "–"],
      ["Policy version", `${[...versions].join(" to ")}${listed ? `, ${listed.staleness} behind` : ""}`],
      ["Delivered", listed ? `${listed.times_sampled} times${listed.redeliveries ? `, came back ${listed.redeliveries}` : ""}` : "–"],
      ["Priority", listed ? number(listed.priority) : "–"],
      ["KL, ESS fed back", listed && (listed.kl !== null || listed.ess !== null) ? `${number(listed.kl)}, ${number(listed.ess)}` : "nothing yet"],
      ["Task", group.task || "–"],
      ["Prompt id", group.prompt_id],
      ["Producer", group.producer_id || "–"],
      ["Scored", group.created_at_ms ? ago(group.created_at_ms) : "–"],
      ...Object.entries(group.tags ?? {}).map(([name, value]) => [`tag ${name}`, value]),
    ];
    sync(
      this.facts,
      facts,
      ([name]) => name,
      ([name]) => h("div", {}, h("dt", { class: "untrusted" }, name), h("dd", { class: "untrusted" })),
      (item, [, value]) => text(item.lastChild, value),
    );
  }

  #show(ratios) {
    const { group } = this;
    text(this.note, "");
    this.#showPrompt();
    if (!group.response_token_ids) {
      text(
        this.note,
        "The table keeps no payload of this group: it has no reward variance, so no step trains on it. keep_ineffective_payload keeps such ones to look at.",
      );
    }
    this.#readColumns(ratios);
    const [low, high] = [Math.min(...group.rewards), Math.max(...group.rewards)];
    let end = 0;
    group.response_lengths.forEach((length, index) => {
      const start = end;
      end += length;
      this.responses.append(this.#makeResponse({ index, start, end, low, high }));
    });
    this.#shadeAll();
  }

  #showPrompt() {
    const { group } = this;
    const images = Object.entries(group.columns ?? {}).flatMap(([name, column]) => imagesOf(name, column));
    const ids = group.prompt_token_ids ? decode(group.prompt_token_ids, "int32") : [];
    const words = group.prompt_text ?? (ids.length ? `(no text) ${[...ids.slice(0, TOKENS_SHOWN)].join(" ")}` : "(not kept)");
    this.prompt.append(
      h("h2", { id: "prompt-title" }, "Prompt ", h("span", { class: "muted" }, plural(group.prompt_length, "token"))),
      ...images,
      h("pre", { class: "words untrusted" }, words),
    );
  }

  /** Offer what tokens can be shaded by; what was chosen stays where it still is to be had. */
  #readColumns(ratios) {
    const { group } = this;
    const chosen = this.shadings ? this.shade.value : LOGPROBS;
    this.shadings = readShadings(group, ratios);
    if (!group.response_token_ids) return;
    this.ids = decode(group.response_token_ids, "int32");
    this.shade.replaceChildren(...options(this.shadings));
    this.shade.value = this.shadings.get(chosen)?.missing ? LOGPROBS : chosen;
    this.controls.hidden = false;
    this.told.hidden = false;
    text(this.told, aboutRatios(ratios));
  }

  #makeResponse({ index, start, end, low, high }) {
    const { group } = this;
    const reward = group.rewards[index];
    const body = h("pre", { class: "words untrusted" });
    const more = h("button", { type: "button", hidden: true });
    const figures = [plural(end - start, "token"), group.finish_reasons?.[index] ?? ""];
    if (this.ids) figures.push(`mean logprob ${number(mean([...this.shadings.get(LOGPROBS).values.slice(start, end)]))}`);
    const article = h(
      "article",
      { class: `panel response ${rewardLook(reward, low, high).replace("reward ", "")}`, "aria-label": `Response ${index}, reward ${number(reward)}` },
      h(
        "header",
        {},
        h("h2", {}, `Response ${index}`),
        h("strong", { class: rewardLook(reward, low, high) }, `reward ${number(reward)}`),
        h("span", { class: "muted" }, figures.filter(Boolean).join(", ")),
      ),
      body,
      more,
    );
    article.pieces = this.#pieces(index, start, end);
    article.shown = TOKENS_SHOWN;
    more.addEventListener("click", () => {
      article.shown *= 8;
      this.#shadeOne(article);
    });
    Object.assign(article, { body, more, start });
    return article;
  }

  /**
   * Return what to show for each token: its character where the text has one for each (with or without a token for the
   * end), else its number. The service has no tokenizer, so it cannot know which token made which part of a text.
   */
  #pieces(index, start, end) {
    const whole = this.group.response_texts?.[index];
    if (!this.ids) return { whole: whole ?? "", count: 0 };
    const ids = this.ids.slice(start, end);
    const letters = whole === undefined ? [] : [...whole];
    const spelled = whole !== undefined && (letters.length === ids.length || letters.length === ids.length - 1);
    if (spelled) return { whole, spelled, count: ids.length, token: (at) => letters[at] ?? `⟨${ids[at]}⟩` };
    return { whole: whole ?? null, spelled, count: ids.length, token: (at) => `${ids[at]} ` };
  }

  #shadeAll() {
    for (const article of this.responses.children) this.#shadeOne(article);
    const shading = this.shadings?.get(this.shade.value);
    this.scale.replaceChildren();
    if (!shading) return;
    this.scale.append(...legend(shading));
  }

  #shadeOne({ pieces, body, more, shown, start }) {
    const shading = this.shadings?.get(this.shade.value);
    const { whole, count, token, spelled } = pieces;
    body.hidden = !count && !whole;
    if (!count || (!shading && whole !== null)) {
      const cut = whole.length > TEXT_SHOWN && shown === TOKENS_SHOWN;
      body.replaceChildren(cut ? `${whole.slice(0, TEXT_SHOWN)} …` : whole);
      more.hidden = !cut;
      text(more, `Show all ${number(whole.length)} characters`);
      return;
    }
    const parts = [];
    if (!spelled && whole !== null) parts.push(h("span", { class: "whole" }, whole.slice(0, TEXT_SHOWN)));
    for (let at = 0; at < Math.min(shown, count); at += 1) {
      const value = shading?.values[start + at];
      const look = shading ? tokenLook(value, shading) : "";
      parts.push(h("span", { class: `token ${look}`, title: shading ? tokenTitle(value, shading) : null }, token(at)));
    }
    body.replaceChildren(...parts);
    more.hidden = count <= shown;
    text(more, `Show more of ${number(count)} tokens`);
  }
}
