import { createHmac } from "node:crypto";
import { describe, expect, test } from "vitest";
import type { SourceProvider } from "../../src/core/source.ts";
import { reactionTo, readWebhook } from "../../src/core/webhook-event.ts";
import { isSigned, newWebhookSecret } from "../../src/core/webhook-signature.ts";

const secret = "It's a Secret to Everybody";
const hex = (key: string | Buffer, text: string) => createHmac("sha256", key).update(text).digest("hex");
const request = (headers: Record<string, string>, body = "Hello, World!") => ({ headers, body: Buffer.from(body) });
const signed = (provider: SourceProvider, headers: Record<string, string>, body?: string, now = 0) =>
  isSigned(provider, secret, request(headers, body), now);

describe("signatures that the providers' own pages give", () => {
  test("GitHub, validating webhook deliveries", () => {
    const signature = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
    expect(signed("github", { "x-hub-signature-256": signature })).toBe(true);
    expect(signed("generic", { "x-hub-signature-256": signature })).toBe(true);
  });

  test("Bitbucket, managing webhooks", () => {
    const signature = "sha256=a4771c39fbe90f317c7824e83ddef3caae9cb3d976c214ace1f2937e133263c9";
    expect(signed("bitbucket", { "x-hub-signature": signature }, "Hello World!")).toBe(true);
  });

  test("Standard Webhooks, which GitLab signs by", () => {
    const key = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const headers = {
      "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
      "webhook-timestamp": "1614265330",
      "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    };
    const body = '{"test": 2432232314}';
    const at = (now: number, more: Record<string, string> = {}) =>
      isSigned("gitlab", key, request({ ...headers, ...more }, body), now);
    expect(at(1614265330)).toBe(true);
    // One of several, as when a secret is being replaced.
    expect(at(1614265330, { "webhook-signature": `v1,AAAA v1a,BBBB ${headers["webhook-signature"]}` })).toBe(true);
    // Too old, too new, another time or id than was signed, another version.
    for (const now of [1614265330 + 301, 1614265330 - 301]) expect(at(now)).toBe(false);
    expect(at(1614265331, { "webhook-timestamp": "1614265331" })).toBe(false);
    expect(at(1614265330, { "webhook-timestamp": "1614265330.0" })).toBe(false);
    expect(at(1614265330, { "webhook-id": "msg_other" })).toBe(false);
    expect(at(1614265330, { "webhook-signature": "v2,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=" })).toBe(false);
    expect(at(1614265330, { "webhook-signature": "" })).toBe(false);
    // A bad signature is not made good by a token.
    expect(at(1614265330, { "webhook-signature": "v1,AAAA", "x-gitlab-token": key })).toBe(false);
  });
});

describe("each provider's own way", () => {
  const body = '{"ref":"refs/heads/main"}';
  const good: Record<Exclude<SourceProvider, "berth">, Record<string, string>> = {
    github: { "x-hub-signature-256": `sha256=${hex(secret, body)}` },
    bitbucket: { "x-hub-signature": `sha256=${hex(secret, body)}` },
    gitea: { "x-gitea-signature": hex(secret, body) },
    forgejo: { "x-forgejo-signature": hex(secret, body), "x-gitea-signature": hex(secret, body) },
    gitlab: { "x-gitlab-token": secret },
    generic: { authorization: `Bearer ${secret}` },
  };

  test.each(Object.entries(good))("%s: its header, and none of another's", (name, headers) => {
    const provider = name as SourceProvider;
    expect(signed(provider, headers, body)).toBe(true);
    expect(signed(provider, {}, body)).toBe(false);
    for (const key of Object.keys(headers)) {
      // Empty, of another secret, in capitals, cut off, and with something behind it.
      const value = headers[key] ?? "";
      const wrong = ["", value.replace(secret, "x").replace(hex(secret, body), hex("x", body)), value.toUpperCase()];
      for (const text of [...wrong, value.slice(0, -1), `${value}0`, value.replace("sha256=", "")]) {
        if (text !== value) expect(signed(provider, { [key]: text }, body), text).toBe(false);
      }
    }
    if (name !== "gitlab" && name !== "generic") {
      // What was signed is the bytes, not what they mean.
      expect(signed(provider, headers, JSON.stringify(JSON.parse(body), null, 1))).toBe(false);
      expect(signed(provider, headers, `${body}\n`)).toBe(false);
    }
  });

  test("nothing is signed for what is pushed to Berth itself", () => {
    for (const headers of Object.values(good)) expect(signed("berth", headers, body)).toBe(false);
  });

  test("Gitea and Forgejo sign the JSON in a form, GitHub the form", () => {
    const form = new URLSearchParams({ payload: body }).toString();
    const type = { "content-type": "application/x-www-form-urlencoded" };
    expect(signed("gitea", { ...type, "x-gitea-signature": hex(secret, body) }, form)).toBe(true);
    expect(signed("forgejo", { ...type, "x-forgejo-signature": hex(secret, body) }, form)).toBe(true);
    expect(signed("github", { ...type, "x-hub-signature-256": `sha256=${hex(secret, form)}` }, form)).toBe(true);
    expect(signed("github", { ...type, "x-hub-signature-256": `sha256=${hex(secret, body)}` }, form)).toBe(false);
    expect(readWebhook("github", request({ ...type, "x-github-event": "push" }, form)).changes).toEqual([
      { ref: "refs/heads/main", deleted: false },
    ]);
  });

  test("a Forgejo signature that is there is the one that counts", () => {
    expect(signed("forgejo", { "x-forgejo-signature": "", "x-gitea-signature": hex(secret, body) }, body)).toBe(false);
    expect(signed("forgejo", { "x-gitea-signature": hex(secret, body) }, body)).toBe(true);
  });

  test("one secret does for all: text to those who take text, 32 bytes to Standard Webhooks", () => {
    const made = newWebhookSecret();
    expect(made).toMatch(/^whsec_[A-Za-z0-9+/]{43}=$/);
    expect(newWebhookSecret()).not.toBe(made);
    const signature = createHmac("sha256", Buffer.from(made.slice(6), "base64"))
      .update("i.5.{}")
      .digest("base64");
    const headers = { "webhook-id": "i", "webhook-timestamp": "5", "webhook-signature": `v1,${signature}` };
    expect(isSigned("gitlab", made, request(headers, "{}"), 5)).toBe(true);
    expect(isSigned("gitlab", made, request({ "x-gitlab-token": made }), 5)).toBe(true);
  });
});

describe("what an event says", () => {
  const zero = "0".repeat(40);
  const push = (ref: unknown, more: object = {}) => JSON.stringify({ ref, ...more });
  test.each<[string, SourceProvider, Record<string, string>, string, object]>([
    [
      "GitHub's push",
      "github",
      { "x-github-event": "push", "x-github-delivery": "72d3162e" },
      push("refs/heads/main", { deleted: false, after: "a".repeat(40) }),
      { key: "72d3162e", name: "push", changes: [{ ref: "refs/heads/main", deleted: false }] },
    ],
    [
      "GitHub's push that deletes",
      "github",
      { "x-github-event": "push" },
      push("refs/heads/main", { deleted: true, after: zero }),
      { key: null, changes: [{ ref: "refs/heads/main", deleted: true }] },
    ],
    ["GitHub's ping", "github", { "x-github-event": "ping" }, "{}", { name: "ping", changes: [] }],
    [
      "GitLab's push",
      "gitlab",
      { "x-gitlab-event": "Push Hook", "idempotency-key": "f5e5f430" },
      push("refs/heads/x/y", { after: zero }),
      { key: "f5e5f430", changes: [{ ref: "refs/heads/x/y", deleted: true }] },
    ],
    ["GitLab's tag", "gitlab", { "x-gitlab-event": "Tag Push Hook" }, push("refs/tags/v1"), { changes: [] }],
    [
      "Forgejo's push by Gitea's names",
      "forgejo",
      { "x-gitea-event": "push", "x-gitea-delivery": "f6266f16" },
      push("refs/heads/main"),
      { key: "f6266f16", changes: [{ ref: "refs/heads/main", deleted: false }] },
    ],
    [
      "Bitbucket Cloud's push",
      "bitbucket",
      { "x-event-key": "repo:push", "x-request-uuid": "{1}" },
      JSON.stringify({
        push: {
          changes: [
            { old: null, new: { type: "branch", name: "main" } },
            { old: { type: "branch", name: "old" }, new: null },
            { old: null, new: { type: "tag", name: "v1" } },
          ],
        },
      }),
      {
        key: "{1}",
        changes: [
          { ref: "refs/heads/main", deleted: false },
          { ref: "refs/heads/old", deleted: true },
          { ref: "refs/tags/v1", deleted: false },
        ],
      },
    ],
    [
      "Bitbucket Data Center's push",
      "bitbucket",
      { "x-event-key": "repo:refs_changed", "x-request-id": "r1" },
      JSON.stringify({
        changes: [
          { ref: { id: "refs/heads/main" }, type: "UPDATE" },
          { ref: { id: "refs/heads/old" }, type: "DELETE" },
        ],
      }),
      {
        key: "r1",
        changes: [
          { ref: "refs/heads/main", deleted: false },
          { ref: "refs/heads/old", deleted: true },
        ],
      },
    ],
    ["a branch's short name", "generic", {}, push("main"), { changes: [{ ref: "refs/heads/main", deleted: false }] }],
    ["a body that never changes", "generic", { "idempotency-key": "k" }, "ping", { key: "k", changes: null }],
    ["no body", "generic", {}, "", { changes: null }],
    ["a ref that is no text", "generic", {}, push(["main"]), { changes: null }],
    ["a list in place of an object", "bitbucket", { "x-event-key": "repo:push" }, "[1]", { changes: null }],
    ["an id that can't be one", "generic", { "idempotency-key": "a b" }, "", { key: null }],
    ["a name that can't be one", "github", { "x-github-event": "<b>" }, "{}", { name: "unknown", changes: [] }],
  ])("%s", (_, provider, headers, body, expected) => {
    expect(readWebhook(provider, request(headers, body))).toMatchObject(expected);
  });

  const told = (...changes: [ref: string, deleted?: boolean][]) => ({
    key: null,
    name: "push",
    changes: changes.map(([ref, deleted = false]) => ({ ref, deleted })),
  });
  test("only branches that build are read; why not is said", () => {
    const main = "refs/heads/main";
    expect(reactionTo(told([main]), ["main"])).toEqual({ refs: [main] });
    expect(reactionTo(told(["refs/heads/x"], [main], [main]), ["dev", "main"])).toEqual({ refs: [main] });
    expect(reactionTo(told(["refs/heads/x"]), ["main"])).toEqual({
      ignored: 'The branch "x" is none that this source builds.',
    });
    expect(reactionTo(told([main, true]), ["main"])).toEqual({ ignored: 'The branch "main" was deleted.' });
    expect(reactionTo(told(["refs/tags/main"]), ["main"])).toEqual({
      ignored: '"main" is no branch; only branches are built.',
    });
    expect(reactionTo({ ...told(), name: "ping" }, ["main"])).toEqual({
      ignored: 'Nothing is built for the event "ping".',
    });
  });

  test("without branches any that moves may be the default one; without refs all are read", () => {
    expect(reactionTo(told(["refs/heads/x"]), [])).toEqual({ refs: ["HEAD"] });
    expect(reactionTo(told(["refs/heads/x", true]), [])).toMatchObject({ ignored: expect.any(String) as string });
    const silent = { ...told(), changes: null };
    expect(reactionTo(silent, [])).toEqual({ refs: ["HEAD"] });
    expect(reactionTo(silent, ["a", "b"])).toEqual({ refs: ["refs/heads/a", "refs/heads/b"] });
  });
});
