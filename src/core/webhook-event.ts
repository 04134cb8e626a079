import { refName, type SourceProvider, trackedRefs } from "./source.ts";
import { formPayload, type WebhookRequest } from "./webhook-signature.ts";

/** What a webhook says. It is a hint only: which refs to read again. */
export interface WebhookEvent {
  /** The provider's id of the delivery, the same when it is sent again; null: it has none. */
  key: string | null;
  /** As the provider calls it, such as `push`. */
  name: string;
  /** The refs that it says have moved; null: it does not say. */
  changes: readonly RefChange[] | null;
}

export interface RefChange {
  /** A full name, `refs/heads/main`. */
  ref: string;
  deleted: boolean;
}

/** Where each provider puts the delivery's id and the event's name, and how it calls pushes. */
const dialects: Record<SourceProvider, { keys: readonly string[]; event: string | null; pushes: readonly string[] }> = {
  github: { keys: ["x-github-delivery"], event: "x-github-event", pushes: ["push"] },
  gitlab: {
    keys: ["webhook-id", "idempotency-key", "x-gitlab-event-uuid"],
    event: "x-gitlab-event",
    pushes: ["Push Hook"],
  },
  gitea: { keys: ["x-gitea-delivery"], event: "x-gitea-event", pushes: ["push"] },
  forgejo: { keys: ["x-forgejo-delivery", "x-gitea-delivery"], event: "x-forgejo-event", pushes: ["push"] },
  bitbucket: {
    keys: ["x-request-uuid", "x-request-id"],
    event: "x-event-key",
    pushes: ["repo:push", "repo:refs_changed"],
  },
  generic: { keys: ["idempotency-key"], event: null, pushes: ["push"] },
  berth: { keys: [], event: null, pushes: [] },
};

/** More than one push moves. */
const maxChanges = 1_000;

/** Reads a request whose signature was found good. What can't be read of the body is as if it were not said. */
export function readWebhook(provider: SourceProvider, request: WebhookRequest): WebhookEvent {
  const { headers } = request;
  const { keys, event, pushes } = dialects[provider];
  const key = keys.map((name) => headers[name] ?? "").find((value) => /^[\x21-\x7e]{1,255}$/.test(value)) ?? null;
  const said = event === null ? "push" : (headers[event] ?? headers[event.replace("forgejo", "gitea")] ?? "");
  const name = /^[\w: .-]{1,64}$/.test(said) ? said : "unknown";
  return { key, name, changes: pushes.includes(name) ? changesOf(provider, payloadOf(request)) : [] };
}

function payloadOf(request: WebhookRequest): unknown {
  try {
    return JSON.parse(formPayload(request) ?? request.body.toString("utf8"));
  } catch {
    return null;
  }
}

type Json = Readonly<Record<string, unknown>>;
const asObject = (value: unknown): Json => (typeof value === "object" && value !== null ? (value as Json) : {});
const asList = (value: unknown): unknown[] | null => (Array.isArray(value) ? value.slice(0, maxChanges) : null);
const asText = (value: unknown): string => (typeof value === "string" ? value : "");

function changesOf(provider: SourceProvider, body: unknown): RefChange[] | null {
  const payload = asObject(body);
  const changes =
    provider === "bitbucket"
      ? (asList(payload.changes)?.map(dataCenterChange) ??
        asList(asObject(payload.push).changes)?.map(cloudChange) ??
        null)
      : payload.ref === undefined
        ? null
        : [{ ref: fullName(asText(payload.ref)), deleted: payload.deleted === true || isZero(payload.after) }];
  // What names no ref says nothing: everything is read.
  return changes?.some(({ ref }) => ref === "") === true ? null : changes;
}

/** Bitbucket Cloud: `old` and `new` are null when there was, or is, none. */
function cloudChange(value: unknown): RefChange {
  const change = asObject(value);
  const deleted = change.new === null || change.new === undefined;
  const target = asObject(deleted ? change.old : change.new);
  const name = asText(target.name);
  if (name === "") return { ref: "", deleted };
  return { ref: `${target.type === "tag" ? "refs/tags/" : "refs/heads/"}${name}`, deleted };
}

function dataCenterChange(value: unknown): RefChange {
  const change = asObject(value);
  return { ref: asText(asObject(change.ref).id), deleted: change.type === "DELETE" };
}

const isZero = (value: unknown) => typeof value === "string" && /^0{40,64}$/.test(value);
const fullName = (ref: string) => (ref === "" || ref.startsWith("refs/") ? ref : `refs/heads/${ref}`);

/** What is to be done about an event: read these refs, or nothing, for a reason. */
export type Reaction = { refs: readonly string[] } | { ignored: string };

/**
 * What an event means to a source with these branches. Who names none follows the default branch, whose name is read from
 * the repository, not from the event: any branch that moves may be it.
 */
export function reactionTo(event: WebhookEvent, branches: readonly string[]): Reaction {
  const tracked = trackedRefs(branches);
  const { changes, name } = event;
  if (changes === null) return { refs: tracked };
  if (changes.length === 0) return { ignored: `Nothing is built for the event ${JSON.stringify(name)}.` };
  const moved = changes.filter(({ ref, deleted }) => ref.startsWith("refs/heads/") && !deleted);
  const refs =
    branches.length === 0 && moved.length > 0
      ? tracked
      : tracked.filter((ref) => moved.some((change) => change.ref === ref));
  return refs.length > 0 ? { refs } : { ignored: reasonFor(changes[0] as RefChange) };
}

function reasonFor({ ref, deleted }: RefChange): string {
  const shown = JSON.stringify(refName(ref).slice(0, 255));
  if (!ref.startsWith("refs/heads/")) return `${shown} is no branch; only branches are built.`;
  if (deleted) return `The branch ${shown} was deleted.`;
  return `The branch ${shown} is none that this source builds.`;
}
