import { BerthError } from "../../core/errors.ts";
import { namePattern, nameRule } from "../../core/names.ts";
import { allows, type Role } from "../../core/roles.ts";
import { findSource } from "../../db/sources.ts";
import type { Principal } from "../../db/tokens.ts";
import { identifier } from "../auth.ts";
import { basicToken } from "../basic-token.ts";
import type { App, Request, Services } from "../context.ts";
import { notFound } from "../parameters.ts";
import { asBerthError } from "../problem.ts";
import { serveGit } from "./http-backend.ts";
import type { GitRun } from "./program.ts";
import { attendPush } from "./push.ts";
import { buildBranches, isFinal, type PushedTo } from "./push-builds.ts";
import { createPushedSource } from "./pushed-source.ts";
import type { PushNote } from "./repositories.ts";

/** The services of the protocol, and the role that each needs. */
const needed = { "git-upload-pack": "viewer", "git-receive-pack": "deployer" } as const satisfies Record<string, Role>;
type GitService = keyof typeof needed;

/** What a pack may come with: commands, and the protocol's own words. */
const aroundPackBytes = 2 ** 20;
/** Pushes and fetches of one project at a time: each is several programs. */
const maxAtOnce = 16;
/** How long a pack may take to come. */
const maxReceiveMs = 30 * 60_000;

/**
 * `/git/<project>/<source>.git`: git's smart HTTP protocol. A push builds the source's branches and prints what becomes of
 * them; to a name that the project has no source of, it makes one. Errors are plain text, which git shows.
 */
export function addGit(app: App, services: Services): void {
  const { repositories, streams, log } = services;
  const identify = identifier(services);
  const served = new Map<string, number>();

  /** Counts a request that git serves until it is closed; its signal fires when the token is revoked. */
  const hold = (principal: Principal, projectId: string) => {
    const now = served.get(projectId) ?? 0;
    if (now >= maxAtOnce) throw new BerthError("too_many_requests", `The project has ${maxAtOnce} git requests open.`);
    const held = streams.open(principal, projectId);
    served.set(projectId, now + 1);
    let counted = true;
    const close = () => {
      held.close();
      if (counted) served.set(projectId, (served.get(projectId) ?? 1) - 1);
      counted = false;
    };
    return { signal: held.signal, close };
  };

  const open = async (c: Request, service: GitService): Promise<PushedTo> => {
    const token = basicToken(c.req.header("authorization") ?? "");
    if (token === null) throw new BerthError("unauthorized", "Give a token as the password; the user can be anything.");
    const { principal, project, scope } = await identify(token, c.req.param("project"));
    c.set("principal", principal);
    c.set("project", project);
    c.set("scope", scope);
    const role = needed[service];
    if (!allows(principal.role, role)) {
      throw new BerthError("forbidden", `This needs the role ${role}; the token has ${principal.role}.`);
    }
    const name = (c.req.param("repository") ?? "").replace(/\.git$/, "");
    if (!namePattern.test(name)) throw new BerthError("not_found", `A repository's name must be ${nameRule}.`);
    const found = await findSource(services.sql, scope, name);
    const source = found ?? (service === "git-receive-pack" ? await createPushedSource(services, c, name) : null);
    if (source === null) throw notFound("repository");
    if (source.provider !== "berth") {
      throw new BerthError("invalid_state", `${name} is built from ${source.url ?? "elsewhere"}: push there.`);
    }
    const repository = await repositories.ensure(scope.projectId, source.id);
    if (service === "git-receive-pack") await repositories.checkSize(repository);
    return { scope, source, repository, address: `/git/${project.name}/${source.name}.git` };
  };

  /** Follows a push; whatever becomes of it, what it has brought is built, and the repository kept small. */
  const attend = (pushed: PushedTo, run: GitRun, signal: AbortSignal, noted: PushNote) => {
    const { repository } = pushed;
    const late = setTimeout(run.stop, maxReceiveMs);
    void attendPush(services, pushed, run.channel, signal, () => clearTimeout(late));
    const settle = async () => {
      try {
        await buildBranches(services, pushed);
        await noted.known();
      } catch (error) {
        // Who pushes once more pushes nothing new: that would begin no build.
        if (isFinal(error)) await noted.known();
        else noted.leave();
        throw error;
      }
      await repositories.compact(repository);
    };
    run.ended
      .catch(() => undefined)
      .then(() => {
        clearTimeout(late);
        return repositories.inTurn(repository, settle);
      })
      .catch((thrown: unknown) => {
        const error = asBerthError(thrown);
        if (error.status >= 500) log.warn({ err: thrown, source: pushed.source.id }, "a push's builds did not begin");
      });
  };

  const serve = async (c: Request, service: GitService, pushed: PushedTo, path: string): Promise<Response> => {
    const { principal, scope } = c.var;
    const held = hold(principal, scope.projectId);
    const signal = AbortSignal.any([held.signal, c.req.raw.signal]);
    const { maxPackBytes } = repositories;
    const method = path === service ? "POST" : "GET";
    try {
      const noted =
        method === "POST" && service === "git-receive-pack" ? await repositories.beginPush(pushed.repository) : null;
      return await serveGit(
        {
          repository: pushed.repository,
          path,
          method,
          query: method === "GET" ? `service=${service}` : "",
          user: principal.tokenId,
          headers: c.req.raw.headers,
          body: c.req.raw.body,
          maxBodyBytes: maxPackBytes + aroundPackBytes,
          config: { "core.hooksPath": repositories.hooks, "receive.maxInputSize": String(maxPackBytes) },
          signal,
        },
        (run) => {
          void run.ended.catch(() => undefined).then(() => held.close());
          if (noted !== null) attend(pushed, run, signal, noted);
        },
      );
    } catch (error) {
      held.close();
      throw error;
    }
  };

  const answer = async (c: Request, work: () => Promise<Response>): Promise<Response> => {
    try {
      return await work();
    } catch (thrown) {
      const error = asBerthError(thrown);
      if (error.status >= 500) log.error({ err: error.cause ?? error, code: error.code }, "a git request failed");
      if (error.status === 401) c.header("WWW-Authenticate", 'Basic realm="Berth", charset="UTF-8"');
      return c.text(`${error.message}\n`, error.status as 400);
    }
  };

  app.get("/git/:project/:repository{.+\\.git}/info/refs", (c) =>
    answer(c, async () => {
      const service = c.req.query("service") ?? "";
      if (!isService(service)) throw new BerthError("invalid_request", "Only git's smart protocol is spoken here.");
      return serve(c, service, await open(c, service), "info/refs");
    }),
  );

  app.post("/git/:project/:repository{.+\\.git}/:service{git-(?:upload|receive)-pack}", (c) =>
    answer(c, async () => {
      const service = c.req.param("service");
      if (!isService(service)) throw notFound("repository");
      return serve(c, service, await open(c, service), service);
    }),
  );
}

const isService = (text: string): text is GitService => Object.hasOwn(needed, text);
