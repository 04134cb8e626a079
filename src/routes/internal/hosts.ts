import { z } from "@hono/zod-openapi";
import { bodyLimit } from "hono/body-limit";
import { BerthError } from "../../core/errors.ts";
import { type HostRegistration, hostNamePattern } from "../../core/host.ts";
import { jobSealPurpose } from "../../core/job.ts";
import { hostKey, joinKey, open, parseCredential, sameSecret } from "../../core/keys.ts";
import { leasedKind } from "../../db/hosts.ts";
import { joinHost } from "../../db/hosts-join.ts";
import type { Pool } from "../../db/scope.ts";
import { maxJsonBytes } from "../json-body.ts";
import type { InternalApp } from "./app.ts";
import { authenticateHost } from "./host-auth.ts";

const text = z.string().regex(/^[\w.:-]{1,253}$/);
const port = z.int().min(1).max(65_535);
const bytes = z.int().min(0);

const Registration = z.strictObject({
  name: z.string().regex(hostNamePattern),
  address: text,
  agentUrl: z.string().regex(/^tls:\/\/[^/@?#\s]{1,253}:\d{1,5}$/),
  bootId: text,
  cpus: z.number().positive(),
  memory: bytes,
  disk: bytes,
  diskFree: bytes,
  diskReserve: bytes,
  portFirst: port,
  portLast: port,
  reservedPorts: z.array(port).max(1_000),
  labels: z.record(z.string().max(255), z.string().max(1_024)),
}) satisfies z.ZodType<HostRegistration>;

/** Characters of a secret of a job, sealed: all secrets of a build may come in one JSON body. */
const maxSealed = Math.ceil(maxJsonBytes * 1.4);

const Sealed = z.strictObject({ epoch: z.int().min(1), sealed: z.string().max(maxSealed) });

/** Bytes of a body. */
const limits = { registration: 256 * 1024, sealed: maxSealed + 1024 };

/** What joining and opening need; of it only this listener's process has the secret key. */
interface HostServices {
  sql: Pool;
  secretKey: string;
}

/**
 * How a host comes to be one, and what it can't do without the secret key, which it never has.
 *
 * - `POST /internal/hosts` with a join token: the host is registered; answers its id and key, from which follows with what
 *   it logs in to the database.
 * - `POST /internal/jobs/{id}/open` with the host's credential: a secret that was sealed for that job, as long as the host
 *   holds its lease.
 */
export function addHostAdmission(app: InternalApp, { sql, secretKey }: HostServices): void {
  app.post("/internal/hosts", limited(limits.registration), async (c) => {
    const token = parseCredential(bearer(c.req.header("authorization")));
    if (token === null || !sameSecret(token.key, joinKey(secretKey, token.id))) {
      throw new BerthError("unauthorized", "The join token is wrong.");
    }
    const keyOf = (id: string) => hostKey(secretKey, id);
    const id = await joinHost(sql, token.id, parse(Registration, await c.req.text()), keyOf);
    return c.json({ id, key: keyOf(id) });
  });

  app.post("/internal/jobs/:id/open", limited(limits.sealed), async (c) => {
    const hostId = await authenticateHost(sql, secretKey, bearer(c.req.header("authorization")));
    if (hostId === null) throw new BerthError("unauthorized", "The host's credential is wrong, or it was forgotten.");
    const { epoch, sealed } = parse(Sealed, await c.req.text());
    const id = c.req.param("id");
    const kind = await leasedKind(sql, hostId, id, epoch);
    if (kind === null) throw new BerthError("not_found", "The host does not hold the lease of such a job.");
    return c.json({ text: open(secretKey, jobSealPurpose({ kind, id }), sealed) });
  });
}

function limited(maxSize: number) {
  return bodyLimit({
    maxSize,
    onError: () => {
      throw new BerthError("body_too_large", `A request has at most ${String(maxSize)} bytes.`);
    },
  });
}

function bearer(header: string | undefined): string {
  return /^Bearer ([\x21-\x7e]{1,512})$/i.exec(header ?? "")?.[1] ?? "";
}

function parse<S extends z.ZodType>(schema: S, body: string): z.infer<S> {
  try {
    return schema.parse(JSON.parse(body));
  } catch (cause) {
    const why = cause instanceof z.ZodError ? z.prettifyError(cause) : "The body is not valid JSON.";
    throw new BerthError("invalid_request", why, { cause });
  }
}
