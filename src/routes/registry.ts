import type { MiddlewareHandler } from "hono";
import { BerthError } from "../core/errors.ts";
import { digestPattern } from "../core/reference.ts";
import { allows } from "../core/roles.ts";
import { findManifest, hasBlob, repositoryTags } from "../db/registry-reads.ts";
import { identifier } from "./auth.ts";
import { basicToken } from "./basic-token.ts";
import type { App, Env, Request, Services } from "./context.ts";
import { heldStream } from "./held-stream.ts";
import { notFound } from "./parameters.ts";
import { asBerthError } from "./problem.ts";
import { registryProblem, unknown } from "./registry-errors.ts";
import { addRegistryPush } from "./registry-push.ts";

const maxTags = 1000;
const allTags = 100;

/**
 * `/v2`: the project's images as an OCI registry (distribution spec v1.1): `docker pull HOST/PROJECT/web:1`. The user of a
 * login can be anything, its password is a token.
 */
export function addRegistry(app: App, services: Services): void {
  const { sql } = services;
  const identify = identifier(services);

  const authenticated: MiddlewareHandler<Env> = async (c, next) => {
    const authorization = c.req.header("authorization") ?? "";
    // Neither a name nor a digest has it, and the database can't be asked for it.
    const texts = Object.values<string>({ ...c.req.param(), ...c.req.query() });
    if (texts.some((text) => text.includes("\0"))) {
      throw new BerthError("invalid_reference", "A name must not have NUL characters.");
    }
    const token = /^Bearer ([\x21-\x7e]{1,512})$/i.exec(authorization)?.[1] ?? basicToken(authorization);
    if (token === null) throw new BerthError("unauthorized", "Give a token as the password; the user can be anything.");
    const { principal, project, scope } = await identify(token, c.req.param("project"));
    c.set("principal", principal);
    c.set("project", project);
    c.set("scope", scope);
    const role = isRead(c.req.method) ? "viewer" : "deployer";
    if (!allows(principal.role, role)) throw new BerthError("forbidden", `This needs the role ${role}.`);
    await next();
  };

  const v2 = "/v2/:project/:repository{.+}";
  const inProject = [`${v2}/manifests/:reference`, `${v2}/blobs/:digest`, `${v2}/tags/list`] as const;
  const uploads = [`${v2}/blobs/uploads/`, `${v2}/blobs/uploads/:upload`];
  for (const path of ["/v2", "/v2/", "/v2/*"]) app.use(path, answered);
  for (const path of ["/v2", "/v2/", ...inProject, ...uploads]) app.use(path, authenticated);

  for (const path of ["/v2", "/v2/"]) app.get(path, (c) => c.json({}));

  app.get(inProject[0], async (c) => {
    const { repository, reference } = c.req.param();
    const found = await findManifest(sql, c.var.scope, repository, reference);
    if (found === null) throw unknown("MANIFEST_UNKNOWN", `There is no ${c.req.path.slice(4)}.`);
    return blob(services, c, found.digest, found.mediaType);
  });

  app.get(inProject[1], async (c) => {
    const { repository, digest } = c.req.param();
    const known = digestPattern.test(digest) && (await hasBlob(sql, c.var.scope, repository, digest));
    if (!known) throw unknown("BLOB_UNKNOWN", `No image of ${repository} has the blob ${digest}.`);
    return blob(services, c, digest, "application/octet-stream");
  });

  app.get(inProject[2], async (c) => {
    const { project, repository } = c.req.param();
    const asked = c.req.query("n") ?? String(allTags);
    if (!/^\d{1,15}$/.test(asked)) throw new BerthError("invalid_request", "n must be a number.");
    // Who asks for more gets them in pages.
    const n = Math.min(Number(asked), maxTags);
    // One more than asked tells whether there are more.
    const tags = await repositoryTags(sql, c.var.scope, repository, { n: n + 1, last: c.req.query("last") ?? "" });
    if (tags === null) throw unknown("NAME_UNKNOWN", `The project has no repository ${repository}.`);
    const page = tags.slice(0, n);
    const last = page.at(-1);
    if (tags.length > n && last !== undefined) {
      const query = new URLSearchParams({ n: String(n), last });
      c.header("Link", `<${c.req.path}?${query.toString()}>; rel="next"`);
    }
    return c.json({ name: `${project}/${repository}`, tags: page });
  });

  addRegistryPush(app, services, v2);
}

/** Answers errors as registries do, and says which protocol is spoken. */
const answered: MiddlewareHandler<Env> = async (c, next) => {
  c.header("Docker-Distribution-API-Version", "registry/2.0");
  // What is thrown has been logged, and stands in `error`, when this returns.
  await next();
  if (c.res.status < 400) return;
  const error = c.error === undefined ? noRoute(c.req.method) : asBerthError(c.error);
  if (error.status === 401) c.header("WWW-Authenticate", 'Basic realm="Berth", charset="UTF-8"');
  c.res = c.json(registryProblem(error), error.status as 400);
};

const isRead = (method: string) => method === "GET" || method === "HEAD";
const noRoute = (method: string) =>
  isRead(method) ? notFound("path") : new BerthError("method_not_allowed", `${method} is not allowed here.`);

/** A blob, or the part of it that the client asks for (RFC 9110, 14.2: one range). */
async function blob(
  { blobs, ...services }: Services,
  c: Request,
  digest: string,
  mediaType: string,
): Promise<Response> {
  const size = await blobs.size(digest);
  if (size === null) throw unknown("BLOB_UNKNOWN", `The blob ${digest} is not in the store any more.`);
  const range = rangeOf(c.req.header("range"), size);
  const headers: Record<string, string> = {
    "Accept-Ranges": "bytes",
    "Content-Length": String(range === null ? size : range.end - range.start + 1),
    "Content-Type": mediaType,
    "Docker-Content-Digest": digest,
    ETag: `"${digest}"`,
    ...(range === null ? {} : { "Content-Range": `bytes ${range.start}-${range.end}/${size}` }),
  };
  const status = range === null ? 200 : 206;
  if (c.req.method === "HEAD") return c.body(null, status, headers);
  const response = heldStream({ blobs, ...services }, c, mediaType, async function* () {
    for await (const chunk of await blobs.open(digest, range ?? undefined)) yield chunk as Uint8Array;
  });
  return new Response(response.body, { status, headers });
}

/** null: all of it. @throws BerthError `range_not_satisfiable` */
function rangeOf(header: string | undefined, size: number): { start: number; end: number } | null {
  const [, from = "", to = ""] = /^bytes=(\d{0,15})-(\d{0,15})$/.exec(header ?? "") ?? [];
  if (from === "" && to === "") return null;
  const start = from === "" ? Math.max(0, size - Number(to)) : Number(from);
  const end = from === "" || to === "" ? size - 1 : Math.min(Number(to), size - 1);
  if (start > end) throw new BerthError("range_not_satisfiable", `The blob has ${size} bytes.`);
  return { start, end };
}
