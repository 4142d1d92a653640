import * as Cause from "effect/Cause"
import * as Predicate from "effect/Predicate"

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

/**
 * Like {@link pretty}; of a backend that is away, or a lock that was lost, its message only: where in here it was
 * noticed tells nobody anything.
 */
export const brief = (cause: Cause.Cause<unknown>): string => {
  const [first, ...others] = cause.reasons
  const error = first?._tag === "Fail" && others.length === 0 ? first.error : undefined
  if (!(error instanceof Error)) return pretty(cause)
  const reason = "reason" in error ? error.reason : error
  const isExpected = Predicate.isTagged(reason, "Unavailable") || Predicate.isTagged(reason, "LockLost")
  return isExpected ? error.message : pretty(cause)
}
