import type { IncomingMessage } from "node:http";
import type { Retry, Transient } from "./retry.ts";

/** Where bytes come from that a connection may break off of. */
export interface BreakingSource {
  /** The response with the bytes from `start` on. @throws BerthError, or `Transient` */
  read: (start: number) => Promise<IncomingMessage>;
  /** That a transfer broke off, which may pass; `how` completes "it …". */
  broken: (how: string, cause?: unknown) => Transient;
}

/**
 * The bytes from `start` to before `end`. When the connection breaks, the rest is asked for.
 * @throws BerthError when it breaks too often without any progress; the signal's reason
 */
export async function* resumed(
  source: BreakingSource,
  { start, end }: { start: number; end: number },
  retry: Retry,
  signal: AbortSignal,
): AsyncGenerator<Buffer, void, undefined> {
  let at = start;
  for (let failures = 0; at < end; ) {
    try {
      const response = await source.read(at);
      try {
        for await (const chunk of bodyOf(response, source)) {
          at += chunk.length;
          failures = 0;
          yield chunk;
        }
      } finally {
        response.destroy();
      }
      if (at < end) throw source.broken("ended the transfer early");
    } catch (error) {
      await retry.wait(error, ++failures, signal);
    }
  }
}

async function* bodyOf(response: IncomingMessage, { broken }: BreakingSource): AsyncGenerator<Buffer, void, undefined> {
  try {
    for await (const chunk of response as AsyncIterable<Buffer>) yield chunk;
  } catch (error) {
    throw broken("broke off the transfer", error);
  }
}
