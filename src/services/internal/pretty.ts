import * as Cause from "effect/Cause"

/**
 * A cause in words, for logs and dead letters. Also of an error that throws when it is looked at (in a getter, or its
 * `toJSON`): what user code fails with must not fail those who tell of it.
 */
export const pretty = (cause: Cause.Cause<unknown>): string => {
  try {
    return Cause.pretty(cause)
  } catch {
    return "an error that cannot be printed"
  }
}
