import { readFileSync, writeFileSync } from "node:fs";
import { get } from "node:http";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { GitClient } from "../support/git-client.ts";
import type { Berth } from "./berth.ts";
import type { Docker } from "./docker.ts";
import { quantile, type Row, row } from "./table.ts";

const rounds = 10;
const name = "bench-push";

const dockerfile = `FROM scratch
COPY --chmod=0755 busybox /bin/busybox
COPY index.html /www/
EXPOSE 8080
CMD ["/bin/busybox", "httpd", "-f", "-p", "8080", "-h", "/www"]
`;

/**
 * From a change of one line to the URL that answers with it: by `git push`, and as one does it with the peer by hand, by
 * `docker build`, `docker rm --force` and `docker run`, which leaves clients without an answer meanwhile.
 */
export async function measurePushes(berth: Berth, docker: Docker | null): Promise<Row[]> {
  const client = await GitClient.create();
  try {
    await client.commit({ Dockerfile: dockerfile, busybox: readFileSync("/bin/busybox"), "index.html": "0\n" });
    const push = async () => {
      const { exitCode, stderr } = await client.git("push", berth.gitUrl(name), "main");
      const [, url] = / is at (http:\S+)/.exec(stderr) ?? [];
      if (exitCode !== 0 || url === undefined) throw new Error(stderr);
      return url;
    };
    const url = await push();
    const ours = await times(url, async (text) => {
      await client.commit({ "index.html": text });
      return push;
    });
    const run = () => docker?.cliReplace(name, client.directory, 8080) ?? Promise.reject(new Error("no peer"));
    const peer =
      docker === null
        ? null
        : await times(await run(), (text) => {
            writeFileSync(join(client.directory, "index.html"), text);
            return Promise.resolve(run);
          });
    return [
      row("a line changed → URL answers with it (git push), p50", "ms", ours, peer, (all) => quantile(all, 0.5), ""),
    ];
  } finally {
    client.remove();
  }
}

/** The time from the begin of what `prepare` answers to the first answer with the new text. */
async function times(url: string, prepare: (text: string) => Promise<() => Promise<unknown>>): Promise<number[]> {
  const all: number[] = [];
  for (let i = 1; i <= rounds; i++) {
    const text = `${String(i)}\n`;
    const begin = await prepare(text);
    const before = performance.now();
    const begun = begin();
    while ((await answer(url)) !== text) await sleep(5);
    all.push(performance.now() - before);
    await begun;
  }
  return all;
}

/** What the URL answers on a connection of its own; null: nothing. */
function answer(url: string): Promise<string | null> {
  return new Promise((resolve) => {
    const request = get(url, { agent: false }, (response) => {
      let text = "";
      response.on("data", (part: Buffer) => (text += part.toString()));
      response.on("end", () => resolve(text));
      response.on("error", () => resolve(null));
    });
    request.on("error", () => resolve(null));
  });
}
