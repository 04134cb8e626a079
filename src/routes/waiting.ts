import { z } from "@hono/zod-openapi";
import { BerthError } from "../core/errors.ts";
import { Changes, topics } from "../db/wakeups.ts";
import type { Request, Services } from "./context.ts";
import { asBerthError } from "./problem.ts";

/** Longest that `Prefer: wait` holds an answer, in seconds. */
const maxWait = 600;
/** Wake-ups may be lost: so often a waiting request looks by itself, in milliseconds. */
const pollMs = 1_000;

/** The header `Prefer` (RFC 7240). */
export const preferHeader = z.object({
  prefer: z
    .string()
    .max(200)
    .optional()
    .openapi({
      description: `\`wait=SECONDS\` holds the answer until the resource has settled, at most ${String(maxWait)} seconds.`,
      example: "wait=30",
    }),
});

/** Seconds that the client prefers to wait; 0 when it said nothing of it. What it can't mean is ignored (RFC 7240, 2). */
export function preferredWait(c: Request): number {
  const seconds = /(?:^|[,;\s])wait\s*=\s*"?(\d{1,6})"?(?:$|[,;\s])/i.exec(c.req.header("prefer") ?? "")?.[1];
  return seconds === undefined ? 0 : Math.min(Number(seconds), maxWait);
}

/**
 * Reads until `settled`, at most for the seconds that the client prefers (`asked`: for so many): subscribes first and then reads, so that no
 * change is missed between the two. Answers the last state read.
 */
export async function settle<T>(
  services: Services,
  c: Request,
  id: string,
  read: () => Promise<T>,
  settled: (state: T) => boolean,
  asked?: number,
): Promise<T> {
  const seconds = asked ?? preferredWait(c);
  if (seconds === 0) return read();
  const held = openHeld(services, c, asked === undefined);
  if (held === null) return read();
  c.header("Preference-Applied", `wait=${String(seconds)}`);
  const changes = new Changes();
  const unsubscribe = services.wakeups.subscribe(topics.resource(id), () => changes.wake());
  const stop = AbortSignal.any([held.signal, c.req.raw.signal]);
  const deadline = performance.now() + seconds * 1000;
  try {
    for (;;) {
      // Whoever waits outlives a database that is away for a moment.
      const seen = await read().then(
        (state) => ({ state }),
        (error: unknown) => {
          if (asBerthError(error).code !== "unavailable" || performance.now() >= deadline) throw error;
          return null;
        },
      );
      const left = deadline - performance.now();
      if (seen !== null && (settled(seen.state) || left <= 0 || stop.aborted)) return seen.state;
      await changes.next(Math.max(Math.min(left, pollMs), 0), stop);
    }
  } finally {
    unsubscribe();
    held.close();
  }
}

/**
 * Counts the request as one that waits. null: the project has too many, and waiting is a mere preference; what was asked
 * is committed already, and must not be answered with an error.
 */
function openHeld(services: Services, c: Request, preferred: boolean) {
  try {
    return services.streams.open(c.var.principal, c.var.scope.projectId);
  } catch (error) {
    if (preferred && error instanceof BerthError && error.code === "too_many_requests") return null;
    throw error;
  }
}
