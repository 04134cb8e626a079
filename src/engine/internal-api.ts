import { request as httpRequest, type IncomingMessage } from "node:http";
import { request as httpsRequest } from "node:https";
import { type ApiAccess, transportOf } from "../core/api-access.ts";
import { BerthError, type ErrorCode } from "../core/errors.ts";

/** The secrets of a build, which may fill a JSON body, are JSON in JSON here. */
const maxAnswerBytes = 4 * 1024 * 1024;
const answerMs = 15_000;

/**
 * Posts JSON to the API's internal listener and answers what came back.
 * @throws BerthError what the API answered, or `unavailable` when it can't be reached
 */
export async function postInternal(api: ApiAccess, path: string, body: object): Promise<unknown> {
  const text = JSON.stringify(body);
  const { url, tls } = transportOf(api);
  const send = url.protocol === "https:" ? httpsRequest : httpRequest;
  const { promise, resolve, reject } = Promise.withResolvers<IncomingMessage>();
  const sent = send(new URL(path, url), {
    method: "POST",
    signal: AbortSignal.timeout(answerMs),
    headers: {
      Authorization: `Bearer ${api.credential}`,
      "Content-Type": "application/json",
      "Content-Length": Buffer.byteLength(text),
    },
    ...tls,
  });
  sent.on("response", resolve);
  sent.on("error", reject);
  sent.end(text);
  try {
    const response = await promise;
    const answer: unknown = JSON.parse(await readText(response));
    if (response.statusCode === 200) return answer;
    const { code, detail } = answer as { code: ErrorCode; detail: string };
    throw new BerthError(code, detail);
  } catch (cause) {
    throw internalError(api, cause);
  }
}

/** Why the internal listener gave no answer, as an error in words. */
export function internalError({ url }: ApiAccess, cause: unknown): BerthError {
  if (cause instanceof BerthError) return cause;
  const code = cause instanceof Error && "code" in cause ? String(cause.code) : "";
  if (code === "EPROTO" || code.startsWith("ERR_SSL")) {
    const detail = `The API's internal listener at ${url} does not let this host in: its key or join token is of another Berth.`;
    return new BerthError("unauthorized", detail, { cause });
  }
  const why = cause instanceof Error ? cause.message : String(cause);
  return new BerthError("unavailable", `The API's internal listener at ${url} does not answer: ${why}.`, { cause });
}

async function readText(response: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of response as AsyncIterable<Buffer>) {
    size += chunk.length;
    if (size > maxAnswerBytes) throw new Error("the answer is too long");
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString("utf8");
}
