/**
 * Under a supervisor, resolves when it says that the database can be used; otherwise at once. So that a role's code is
 * loaded while the database starts.
 */
export function databaseReady(): Promise<void> {
  if (process.send === undefined) return Promise.resolve();
  return new Promise((resolve) => {
    process.once("message", () => resolve());
  });
}

/** Tells the supervisor, when there is one, that this role does its work. */
export function reportReady(): void {
  process.send?.({ ready: true });
}
