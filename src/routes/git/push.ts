import type { Duplex } from "node:stream";
import { toBerthError } from "../../core/errors.ts";
import { databaseError } from "../../db/scope.ts";
import { findSource } from "../../db/sources.ts";
import type { Services } from "../context.ts";
import { anyEvent } from "./any-event.ts";
import { buildBranches, type PushedTo } from "./push-builds.ts";
import { reportPush, type UpdatedRef } from "./push-report.ts";

/** Bytes of what the hook tells. */
const maxTold = 4 * 2 ** 20;

/**
 * The other end of the hook (repositories.ts): hears which refs a push has updated, builds them, and prints what becomes of
 * them. `signal`: the pusher has gone; what has begun goes on, there is only nobody to tell.
 * `received`: called when the push has come to its end.
 */
export async function attendPush(
  services: Services,
  pushed: PushedTo,
  channel: Duplex,
  signal: AbortSignal,
  received: () => void,
): Promise<void> {
  const { repositories, log } = services;
  channel.on("error", () => undefined);
  const updated = await readUpdates(channel);
  received();
  if (updated === null) return;
  const print = async (text: string) => {
    if (signal.aborted || channel.destroyed) return;
    if (channel.write(`${text.split("\n").map(printable).join("\n")}\n`)) return;
    await anyEvent(channel, "drain", "close");
  };
  try {
    const built = await repositories.inTurn(pushed.repository, () => buildBranches(services, pushed));
    const source = await findSource(services.sql, pushed.scope, pushed.source.id);
    if (source !== null) await reportPush(services, pushed, source, updated, built, print, signal);
  } catch (thrown) {
    if (signal.aborted) return;
    const error = toBerthError(databaseError(thrown));
    if (error.status >= 500) log.warn({ err: error.cause ?? error }, "a push's builds were not told of");
    await print(error.message);
  } finally {
    channel.end();
  }
}

/** The refs that the hook names, a line each, `old new ref`, up to an empty line; null: no ref was updated. */
async function readUpdates(channel: Duplex): Promise<UpdatedRef[] | null> {
  let text = "";
  for (;;) {
    const chunk = channel.read() as Buffer | null;
    if (chunk !== null) text += chunk.toString();
    const end = text.indexOf("\n\n");
    if (end >= 0) return text.slice(0, end).split("\n").map(parseUpdate);
    if (text.length > maxTold || channel.readableEnded || channel.destroyed) return null;
    if (chunk !== null) continue;
    await anyEvent(channel, "readable", "end", "close");
  }
}

function parseUpdate(line: string): UpdatedRef {
  const [, commit = "", ref = ""] = line.split(" ");
  return { ref, commit: /^0+$/.test(commit) ? null : commit };
}

/** Without what could make a terminal do anything but show text: what a build prints is its author's. */
function printable(line: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what it removes.
  return line.replaceAll(/\u001b\[[0-?]*[ -/]*[@-~]/g, "").replaceAll(/[\u0000-\u0008\u000a-\u001f\u007f-\u009f]/g, "");
}
