import { z } from "@hono/zod-openapi";
import { BerthError } from "../core/errors.ts";
import { newId } from "../core/ids.ts";
import { seal } from "../core/keys.ts";
import { formatReference } from "../core/reference.ts";
import { allows } from "../core/roles.ts";
import { type SourceBuild, type SourceProvider, type SourceSeals, sourceSealPurpose } from "../core/source.ts";
import { newWebhookSecret } from "../core/webhook-signature.ts";
import { appendEvent } from "../db/events.ts";
import { lock, type Tx, transact, violation } from "../db/scope.ts";
import {
  countSources,
  deleteSource,
  findSource,
  insertSource,
  listSources,
  lockSource,
  replaceSecret,
  type SourceFields,
  type SourceRow,
  updateSource,
} from "../db/sources.ts";
import { type SourceBuildOptions, sourceBuild } from "./build-schema.ts";
import { deployTemplate } from "./container-template.ts";
import type { App, Request, Services } from "./context.ts";
import { idempotencyHeader, once } from "./idempotency.ts";
import { ownName } from "./images.ts";
import { body, json, operation } from "./operation.ts";
import { idParam, listOf, listSchema, notFound, pageOf, pageQuery } from "./parameters.ts";
import { NewSource, Source, SourceCreate, SourceUpdate, sourceView } from "./source-schema.ts";

const tag = "Sources";
export const sourceParam = idParam("source", "id or name");

/** Of one project. */
const maxSources = 200;

const create = operation({
  method: "post",
  path: "/v1/sources",
  operationId: "createSource",
  tag,
  summary: "Create a source: a git repository that builds when it changes",
  description:
    "The answer has the URL and the secret to set up a webhook with; the secret is only in this answer. `docs/sources.md` has the " +
    "steps for each provider.",
  request: { headers: idempotencyHeader, body: body(SourceCreate) },
  responses: { 201: json(NewSource, "The source") },
  errors: ["invalid_reference", "name_taken", "quota_exceeded", "idempotency_key_reused"],
});

const list = operation({
  method: "get",
  path: "/v1/sources",
  operationId: "listSources",
  tag,
  summary: "List sources, newest first",
  request: { query: z.strictObject(pageQuery) },
  responses: { 200: json(listSchema("SourceList", Source), "A page of sources") },
});

const get = operation({
  method: "get",
  path: "/v1/sources/{id}",
  operationId: "getSource",
  tag,
  summary: "Get a source",
  request: { params: sourceParam },
  responses: { 200: json(Source, "The source") },
  errors: ["not_found"],
});

const update = operation({
  method: "patch",
  path: "/v1/sources/{id}",
  operationId: "updateSource",
  tag,
  summary: "Change a source",
  description:
    "What is given takes the place of what was there, as a whole; builds that have begun stay as they are. With another `url` " +
    "nothing counts as built; with one of another host the credentials are gone, unless `auth` comes with it.",
  request: { params: sourceParam, body: body(SourceUpdate) },
  responses: { 200: json(Source, "The source as it is now") },
  errors: ["not_found", "invalid_reference", "name_taken", "invalid_state"],
});

const remove = operation({
  method: "delete",
  path: "/v1/sources/{id}",
  operationId: "deleteSource",
  tag,
  summary: "Remove a source",
  description:
    "Its deliveries and deployments go with it; its builds, images and the container that its ports lead to stay. A deployment " +
    "that is under way ends.",
  request: { params: sourceParam },
  responses: { 204: { description: "It is gone" } },
  errors: ["not_found"],
});

const rotate = operation({
  method: "post",
  path: "/v1/sources/{id}/rotate-secret",
  operationId: "rotateSourceSecret",
  tag,
  summary: "Give a source's webhook another secret",
  description: "Deliveries that are signed with the one before are refused from now on.",
  request: { params: sourceParam, headers: idempotencyHeader },
  responses: { 200: json(NewSource, "The source, with its new secret") },
  errors: ["not_found", "invalid_state", "idempotency_key_reused"],
});

/** The source of the request. @throws BerthError `not_found` */
export async function requireSource(services: Services, c: Request, id: string): Promise<SourceRow> {
  const row = await findSource(services.sql, c.var.scope, id);
  if (row === null) throw notFound("source");
  return row;
}

/** Where a source's webhooks are to be sent: as the client reaches Berth, unless the operator says where it is. */
function webhookUrl(services: Services, c: Request, id: string): string {
  const base = services.publicUrl?.replace(/\/$/, "") ?? new URL(c.req.url).origin;
  return `${base}/v1/webhooks/${id}`;
}

function shown(services: Services, c: Request, row: SourceRow): z.infer<typeof Source> {
  return sourceView(row, webhookUrl(services, c, row.id), allows(c.var.principal.role, "deployer"));
}

/** The source with a secret that was just made. */
function shownWithSecret(services: Services, c: Request, row: SourceRow, secret: string): z.infer<typeof NewSource> {
  const { webhook, ...rest } = shown(services, c, row);
  return { ...rest, webhook: webhook === null ? null : { ...webhook, secret } };
}

/** What the builds of a source of this name are asked, with whole names as tags. */
export function buildOf(c: Request, name: string, asked: z.infer<typeof SourceBuildOptions>): SourceBuild {
  const build = sourceBuild(asked);
  const tags = build.tags.length === 0 ? [name] : build.tags;
  return { ...build, tags: tags.map((text) => formatReference(ownName(text, c.var.project.name))) };
}

const sealedFor = (services: Services, id: string, auth: object | null) =>
  auth === null ? null : seal(services.secretKey, `auth:${id}`, JSON.stringify(auth));

/** What is kept for builds, as it is kept; null: there is none. */
const sealedRecord = ({ secretKey }: Services, kind: keyof SourceSeals, id: string, record: object) =>
  Object.keys(record).length === 0 ? null : seal(secretKey, sourceSealPurpose(kind, id), JSON.stringify(record));

type NewFields = Omit<SourceFields, "authSealed" | "seals"> &
  Pick<z.infer<typeof SourceCreate>, keyof SourceSeals> & { auth: object | null };

/**
 * Adds a source, with a secret for its webhook.
 * @throws BerthError `quota_exceeded`; a name that is taken fails on the constraint `sources_project_id_name_key`
 */
export async function addSource(
  tx: Tx,
  services: Services,
  projectId: string,
  provider: SourceProvider,
  { auth, registryAuth, secrets, ...fields }: NewFields,
): Promise<{ id: string; secret: string }> {
  await lock(tx, `sources:${projectId}`);
  if ((await countSources(tx, projectId)) >= maxSources) {
    throw new BerthError("quota_exceeded", `A project has at most ${String(maxSources)} sources.`);
  }
  const id = newId("source");
  const secret = newWebhookSecret();
  await insertSource(tx, {
    ...fields,
    id,
    projectId,
    provider,
    secretSealed: seal(services.secretKey, `secret:${id}`, secret),
    authSealed: sealedFor(services, id, auth),
    seals: {
      registryAuth: sealedRecord(services, "registryAuth", id, registryAuth),
      secrets: sealedRecord(services, "secrets", id, secrets),
    },
  });
  const { name, url } = fields;
  await appendEvent(tx, { projectId, type: "source.created", subjectId: id, data: { name, provider, url } });
  return { id, secret };
}

/** @throws BerthError `name_taken` for the constraint on names; other errors as they are. */
function nameTaken(name: string | undefined): (error: unknown) => never {
  return (error) => {
    if (violation(error) !== "sources_project_id_name_key") throw error;
    throw new BerthError("name_taken", `The project has a source named ${String(name)}.`);
  };
}

export function addSources(app: App, services: Services): void {
  const { sql, secretKey } = services;

  app.openapi(create, async (c) => {
    const { projectId } = c.var.scope;
    const asked = c.req.valid("json");
    const { name, provider } = asked;
    const build = buildOf(c, name, asked.build);
    const deploy = asked.deploy === undefined ? null : deployTemplate(asked.deploy);
    const made = await once(
      services,
      c,
      async (tx) => {
        const { id, secret } = await addSource(tx, services, projectId, provider, {
          name,
          url: asked.url ?? null,
          branches: [...new Set(asked.branches)],
          subdirectory: asked.subdirectory ?? null,
          build,
          deploy,
          auth: asked.auth ?? null,
          registryAuth: asked.registryAuth,
          secrets: asked.secrets,
        });
        return shownWithSecret(services, c, await reread(tx, c, id), secret);
      },
      { secret: true },
    ).catch(nameTaken(name));
    c.header("Location", `/v1/sources/${made.id}`);
    return c.json(made, 201);
  });

  app.openapi(list, async (c) => {
    const page = pageOf(c.req.valid("query"));
    const rows = await listSources(sql, c.var.scope, page);
    return c.json(
      listOf(
        page,
        rows,
        (row) => row.id,
        (row) => shown(services, c, row),
      ),
      200,
    );
  });

  app.openapi(get, async (c) =>
    c.json(shown(services, c, await requireSource(services, c, c.req.valid("param").id)), 200),
  );

  app.openapi(update, async (c) => {
    const { projectId } = c.var.scope;
    const change = c.req.valid("json");
    const { id } = await requireSource(services, c, c.req.valid("param").id);
    const row = await transact(sql, c.var.scope, async (tx) => {
      const before = await lockSource(tx, c.var.scope, id);
      if (before === null) throw notFound("source");
      await updateSource(tx, before, changedFields(services, c, before, change));
      const data = { fields: Object.keys(change) };
      await appendEvent(tx, { projectId, type: "source.updated", subjectId: id, data });
      return reread(tx, c, id);
    }).catch(nameTaken(change.name));
    return c.json(shown(services, c, row), 200);
  });

  app.openapi(remove, async (c) => {
    const { projectId } = c.var.scope;
    const { id, name } = await requireSource(services, c, c.req.valid("param").id);
    await transact(sql, c.var.scope, async (tx) => {
      if ((await lockSource(tx, c.var.scope, id)) === null) throw notFound("source");
      await deleteSource(tx, projectId, id);
      await appendEvent(tx, { projectId, type: "source.removed", subjectId: id, data: { name } });
    });
    return c.body(null, 204);
  });

  app.openapi(rotate, async (c) => {
    const { projectId } = c.var.scope;
    const { id, provider } = await requireSource(services, c, c.req.valid("param").id);
    if (provider === "berth") throw new BerthError("invalid_state", "The source has no webhook.");
    const made = await once(
      services,
      c,
      async (tx) => {
        const secret = newWebhookSecret();
        await replaceSecret(tx, projectId, id, seal(secretKey, `secret:${id}`, secret));
        await appendEvent(tx, { projectId, type: "source.secret_rotated", subjectId: id });
        return shownWithSecret(services, c, await reread(tx, c, id), secret);
      },
      { secret: true },
    );
    return c.json(made, 200);
  });
}

/** A source as a PATCH leaves it. @throws BerthError `invalid_state`, `invalid_request`, `invalid_reference` */
function changedFields(
  services: Services,
  c: Request,
  before: SourceRow,
  change: z.infer<typeof SourceUpdate>,
): SourceFields {
  if (before.url === null && change.url !== undefined) {
    throw new BerthError("invalid_state", "The source is pushed to Berth itself; it has no URL.");
  }
  if (before.url === null && change.auth !== undefined) {
    throw new BerthError("invalid_state", "The source is pushed to Berth itself; it reads no other repository.");
  }
  const name = change.name ?? before.name;
  const kept = (kind: keyof SourceSeals) =>
    changed(change[kind], keptSeal(kind, before, change.url), (record) =>
      sealedRecord(services, kind, before.id, record),
    );
  return {
    name,
    url: change.url ?? before.url,
    branches: change.branches === undefined ? before.branches : [...new Set(change.branches)],
    subdirectory: change.subdirectory === undefined ? before.subdirectory : change.subdirectory,
    build: change.build === undefined ? before.build : buildOf(c, name, change.build),
    deploy: changed(change.deploy, before.deploy, deployTemplate),
    authSealed: changed(change.auth, keptAuth(before, change.url), (auth) => sealedFor(services, before.id, auth)),
    seals: { registryAuth: kept("registryAuth"), secrets: kept("secrets") },
  };
}

/** Credentials stay with the host that they were given for: who may change the URL must not get to read them so. */
function keptAuth({ url, authSealed }: SourceRow, to: string | undefined): string | null {
  const same = url === null || to === undefined || new URL(url).origin === new URL(to).origin;
  return same ? authSealed : null;
}

/** What a source keeps for its builds. Secrets are for those of its repository: another's Dockerfile could show them. */
function keptSeal(kind: keyof SourceSeals, { url, seals }: SourceRow, to: string | undefined): string | null {
  return kind === "secrets" && to !== undefined && to !== url ? null : seals[kind];
}

/** A field of a PATCH: kept when it is not given, gone when it is null. */
function changed<Asked, Kept>(
  asked: Asked | null | undefined,
  kept: Kept | null,
  keep: (asked: Asked) => Kept | null,
): Kept | null {
  if (asked === undefined) return kept;
  return asked === null ? null : keep(asked);
}

async function reread(tx: Tx, c: Request, id: string): Promise<SourceRow> {
  const row = await findSource(tx, c.var.scope, id);
  if (row === null) throw notFound("source");
  return row;
}
