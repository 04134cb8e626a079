import type { IncomingMessage } from "node:http";
import type { Request, Services } from "./context.ts";

/** A reader that takes nothing for so long is cut off, in milliseconds: what it would read must not pile up here. */
const stallMs = 30_000;

const encoder = new TextEncoder();

/**
 * An answer whose body is produced as fast as the client reads it: the next chunk is made only when the last one has
 * left. It ends when `produce` ends, the client goes, reads nothing for too long, or its token is revoked; then the
 * signal that `produce` was given fires.
 */
export function heldStream(
  services: Services,
  c: Request,
  contentType: string,
  produce: (signal: AbortSignal) => AsyncGenerator<string | Uint8Array>,
): Response {
  const held = services.streams.open(c.var.principal, c.var.scope.projectId);
  const gone = new AbortController();
  const signal = AbortSignal.any([held.signal, gone.signal, c.req.raw.signal]);
  const chunks = produce(signal);
  let stalled: NodeJS.Timeout | undefined;
  const end = () => {
    clearTimeout(stalled);
    gone.abort();
    held.close();
    // A generator that is suspended at a yield ends here, others by the signal.
    void chunks.return(undefined).catch(() => undefined);
  };
  const body = new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        clearTimeout(stalled);
        try {
          const next = await chunks.next();
          if (next.done === true) {
            end();
            controller.close();
            return;
          }
          controller.enqueue(typeof next.value === "string" ? encoder.encode(next.value) : next.value);
          stalled = setTimeout(() => {
            end();
            controller.error(new Error("the client stopped reading"));
          }, stallMs);
        } catch (error) {
          if (!signal.aborted) services.log.warn({ err: error, requestId: c.var.requestId }, "a stream broke off");
          end();
          controller.error(error);
        }
      },
      cancel: end,
    },
    { highWaterMark: 0 },
  );
  return new Response(body, {
    headers: { "Content-Type": contentType, "Cache-Control": "no-store", "X-Accel-Buffering": "no" },
  });
}

/**
 * As `heldStream`, made of what a host's agent sends. What the agent refuses is an error before the stream begins. `ask`
 * is given the signal at which the agent is let go: also when there is no stream, as the project has too many.
 */
export async function relayedStream(
  services: Services,
  c: Request,
  contentType: string,
  ask: (signal: AbortSignal) => Promise<IncomingMessage>,
  produce: (sent: AsyncIterable<Buffer>, signal: AbortSignal) => AsyncGenerator<string | Uint8Array>,
): Promise<Response> {
  const over = new AbortController();
  const sent = await ask(AbortSignal.any([over.signal, c.req.raw.signal]));
  try {
    return heldStream(services, c, contentType, (signal) => {
      signal.addEventListener("abort", () => over.abort(), { once: true });
      return produce(sent as AsyncIterable<Buffer>, signal);
    });
  } catch (error) {
    over.abort();
    throw error;
  }
}

/** Whether the client asks for server-sent events. */
export function wantsEvents(c: Request): boolean {
  return /(?:^|,)\s*text\/event-stream\b/i.test(c.req.header("accept") ?? "");
}

/** One server-sent event (HTML standard, 9.2). `data` becomes one line of JSON. */
export function serverSentEvent(id: string, event: string, data: unknown): string {
  return `id: ${id}\nevent: ${event}\ndata: ${JSON.stringify(data)}\n\n`;
}

/** Sent now and then on an idle event stream, so that both ends notice when the other is gone. */
export const heartbeat = ":\n\n";
export const heartbeatMs = 15_000;

/** The media types of a log. */
export const plainText = "text/plain; charset=utf-8";
export const eventStream = "text/event-stream";
