/**
 * How long receivers know what came out of the outbox, in milliseconds: an instance that died may have sent what
 * another one sends again.
 */
export const repeatWindow = 120_000
