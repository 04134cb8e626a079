import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { corpusDir, corpusList } from "./corpus.ts";

// node test/corpus/fetch.ts: downloads the listed Dockerfiles that are not there yet and checks their digests.

const missing = corpusList().filter(({ sha256 }) => !existsSync(join(corpusDir, sha256)));
await mkdir(corpusDir, { recursive: true });
const failed: string[] = [];

async function fetchNext(): Promise<void> {
  for (let entry = missing.pop(); entry !== undefined; entry = missing.pop()) {
    const { sha256, url } = entry;
    try {
      const response = await fetch(url, { signal: AbortSignal.timeout(30_000) });
      if (!response.ok) throw new Error(`HTTP ${String(response.status)}`);
      const bytes = Buffer.from(await response.arrayBuffer());
      if (createHash("sha256").update(bytes).digest("hex") !== sha256) throw new Error("another digest");
      await writeFile(join(corpusDir, sha256), bytes);
    } catch (error) {
      failed.push(`${url}: ${String(error)}`);
    }
  }
}

await Promise.all(Array.from({ length: 8 }, fetchNext));
for (const line of failed) console.error(line);
process.exitCode = failed.length === 0 ? 0 : 1;
