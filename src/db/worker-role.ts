/** Who workers of other machines are on the embedded database: all that its owner is, with a password. */
export const workerRole = "berth_worker";
