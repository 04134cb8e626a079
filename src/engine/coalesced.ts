/**
 * `work` as something that may be asked for at any time: it runs one at a time, and once more when it was asked for
 * meanwhile, since what it has read by then may be out of date.
 */
export function coalesced(work: () => Promise<void>, failed: (error: unknown) => void): () => void {
  let asked = false;
  let running = false;
  const run = async () => {
    running = true;
    while (asked) {
      asked = false;
      await work().catch(failed);
    }
    running = false;
  };
  return () => {
    asked = true;
    if (!running) void run();
  };
}
