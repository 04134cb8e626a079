import { Agent as HttpAgent, request as httpRequest, type IncomingMessage } from "node:http";
import { Agent as HttpsAgent, request as httpsRequest } from "node:https";
import { pipeline, type Readable } from "node:stream";
import type { Transport } from "../core/api-access.ts";
import { BerthError, toBerthError } from "../core/errors.ts";
import type { OutboundPolicy } from "./outbound.ts";

/** What a request sends; `open` is called for each time that it is sent. */
export interface HttpBody {
  bytes: number;
  open: () => Readable | Promise<Readable>;
}

export interface HttpRequest {
  method: "GET" | "HEAD" | "POST" | "PUT" | "DELETE";
  url: URL;
  headers: Readonly<Record<string, string>>;
  body?: HttpBody;
  signal: AbortSignal;
}

/** A server that was sent much may first store and check it before it answers: it may be silent so many times longer. */
const silenceAfterBody = 10;

/**
 * Requests to hosts that a tenant may have named: the address is checked as it is connected to, and nothing is followed or
 * decoded. Connections are kept for the next request.
 */
export class HttpClient {
  readonly #policy: OutboundPolicy;
  readonly #idleMs: number;
  readonly #http = new HttpAgent({ keepAlive: true, maxSockets: 16 });
  readonly #https: HttpsAgent;

  /**
   * @param idleMs How long a connection may take to open, and then be silent, before it is given up.
   * @param tls Options of https connections.
   */
  constructor(policy: OutboundPolicy, idleMs: number, tls: Transport["tls"] = {}) {
    this.#policy = policy;
    this.#idleMs = idleMs;
    this.#https = new HttpsAgent({ keepAlive: true, maxSockets: 16, ...tls });
  }

  /**
   * Sends a request. Returns the response with its body unread; whoever gets it reads or destroys it.
   * @throws BerthError `address_refused`, or what the body's source failed with (`internal`); otherwise Node's network errors.
   */
  async send({ method, url, headers, body, signal }: HttpRequest): Promise<IncomingMessage> {
    if (url.protocol !== "http:" && url.protocol !== "https:") {
      throw new BerthError("invalid_request", `Berth does not speak ${JSON.stringify(url.protocol)}.`);
    }
    const lookup = this.#policy.lookupFor(url);
    const [start, agent] = url.protocol === "https:" ? [httpsRequest, this.#https] : [httpRequest, this.#http];
    const source = await body?.open();
    const timeout = body === undefined ? this.#idleMs : this.#idleMs * silenceAfterBody;
    const length = body === undefined ? {} : { "content-length": String(body.bytes) };
    return new Promise((resolve, reject) => {
      const outgoing = start(url, { method, headers: { ...headers, ...length }, agent, lookup, signal, timeout });
      outgoing.once("response", resolve);
      // A server may answer before it has read everything and then close: later errors say nothing new.
      outgoing.on("error", reject);
      outgoing.once("timeout", () => {
        outgoing.destroy(new Error(`no answer from ${url.host} for ${String(timeout)} ms`));
      });
      if (source === undefined) outgoing.end();
      else {
        // Ours, and not to be taken for the server's.
        source.once("error", (error) => reject(toBerthError(error)));
        pipeline(source, outgoing, (error) => {
          if (error) reject(error);
        });
      }
    });
  }

  /** Closes the connections that are kept. */
  close(): void {
    this.#http.destroy();
    this.#https.destroy();
  }
}

/** A response's whole body. null: it is larger than `maxBytes`. */
export async function readBody(response: IncomingMessage, maxBytes: number): Promise<Buffer | null> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of response as AsyncIterable<Buffer>) {
    bytes += chunk.length;
    if (bytes > maxBytes) return null;
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}
