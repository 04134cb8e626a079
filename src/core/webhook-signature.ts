import { createHmac, randomBytes } from "node:crypto";
import { sameSecret } from "./keys.ts";
import type { SourceProvider } from "./source.ts";

/** A webhook as it came: `headers` by their lower-case names, the body's bytes. */
export interface WebhookRequest {
  headers: Readonly<Record<string, string>>;
  body: Buffer;
}

/** How far a signed time may be from ours, in seconds (Standard Webhooks: a few minutes). */
const toleranceSeconds = 300;

/**
 * A new secret. Its form is that of Standard Webhooks, which wants bytes in base64; everybody else takes it as text.
 */
export function newWebhookSecret(): string {
  return `whsec_${randomBytes(32).toString("base64")}`;
}

/** Whether the request was signed with the secret, in the provider's own way. `now`: seconds since 1970. */
export function isSigned(provider: SourceProvider, secret: string, request: WebhookRequest, now: number): boolean {
  const { headers, body } = request;
  const hmac = () => createHmac("sha256", secret).update(body).digest("hex");
  switch (provider) {
    case "github":
      return sameSecret(headers["x-hub-signature-256"] ?? "", `sha256=${hmac()}`);
    case "bitbucket":
      return sameSecret(headers["x-hub-signature"] ?? "", `sha256=${hmac()}`);
    case "gitea":
    case "forgejo": {
      // Without a secret of its own the sender leaves the header empty.
      const signature = headers[`x-${provider}-signature`] ?? headers["x-gitea-signature"] ?? "";
      return sameSecret(signature, createHmac("sha256", secret).update(signedJson(request)).digest("hex"));
    }
    case "gitlab":
      return headers["webhook-signature"] === undefined
        ? sameSecret(headers["x-gitlab-token"] ?? "", secret)
        : hasStandardSignature(secret, request, now);
    case "generic":
      return headers["x-hub-signature-256"] === undefined
        ? sameSecret(headers["authorization"] ?? "", `Bearer ${secret}`)
        : sameSecret(headers["x-hub-signature-256"], `sha256=${hmac()}`);
    case "berth":
      return false;
  }
}

/** Standard Webhooks, "Signature scheme": of `id.timestamp.body`, one of several signatures that are separated by blanks. */
function hasStandardSignature(secret: string, { headers, body }: WebhookRequest, now: number): boolean {
  const id = headers["webhook-id"] ?? "";
  const timestamp = headers["webhook-timestamp"] ?? "";
  const key = Buffer.from(secret.replace(/^whsec_/, ""), "base64");
  const expected = `v1,${createHmac("sha256", key).update(`${id}.${timestamp}.`).update(body).digest("base64")}`;
  const given = (headers["webhook-signature"] ?? "").split(" ");
  const matches = given.filter((signature) => sameSecret(signature, expected)).length > 0;
  const fresh = /^\d{1,12}$/.test(timestamp) && Math.abs(now - Number(timestamp)) <= toleranceSeconds;
  return matches && fresh && id !== "";
}

/** What Gitea and Forgejo sign: the JSON, also when a form carries it in its field `payload`. */
function signedJson(request: WebhookRequest): Buffer {
  const form = formPayload(request);
  return form === null ? request.body : Buffer.from(form);
}

/** The JSON of a form's field `payload`; null when the body is no form, or has none. */
export function formPayload({ headers, body }: WebhookRequest): string | null {
  const type = (headers["content-type"] ?? "").split(";")[0]?.trim().toLowerCase();
  if (type !== "application/x-www-form-urlencoded") return null;
  return new URLSearchParams(body.toString("utf8")).get("payload");
}
