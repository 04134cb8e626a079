import type { HttpBindings } from "@hono/node-server";
import { Hono } from "hono";
import { BerthError } from "../../core/errors.ts";
import type { Log } from "../../log.ts";
import { asBerthError } from "../problem.ts";

/** What the internal listener is given by api.ts; tests give their own. */
export interface InternalServices {
  /** The id of the host that a bearer credential belongs to; null: nobody's. */
  authenticate: (bearer: string) => Promise<string | null>;
  log: Log;
}

/** What the middleware has found out about a request. */
export interface InternalEnv {
  Bindings: HttpBindings;
  Variables: { hostId: string };
}

export type InternalApp = Hono<InternalEnv>;

/**
 * What workers on other machines ask of the API: only what can't be rows. It is no tenant's and has an address of its own.
 * Errors are `{ code, detail }` with the code's status.
 */
export function createInternalApp(services: InternalServices): InternalApp {
  const app: InternalApp = new Hono();
  app.use("/internal/blobs/*", async (c, next) => {
    const bearer = /^Bearer ([\x21-\x7e]{1,512})$/i.exec(c.req.header("authorization") ?? "")?.[1];
    const hostId = bearer === undefined ? null : await services.authenticate(bearer);
    if (hostId === null) throw new BerthError("unauthorized", "The host's credential is missing or wrong.");
    c.set("hostId", hostId);
    await next();
  });
  app.onError((thrown, c) => {
    const error = asBerthError(thrown);
    if (error.status >= 500) {
      services.log.error(
        { err: error.cause ?? error, code: error.code, path: c.req.path },
        "an internal request failed",
      );
    }
    return c.json({ code: error.code, detail: error.message }, error.status as 400);
  });
  app.notFound((c) => c.json({ code: "not_found", detail: "There is nothing at this path." }, 404));
  return app;
}
