/**
 * Checks of caller input. Each returns what it read, or the `InvalidInput` that
 * names the field; nothing is thrown.
 */
import * as Duration from "effect/Duration"
import { InvalidInput } from "../Reason.ts"

/** Longest accepted name of an app, channel, cache or plugin, in UTF-16 units. */
const maxNameLength = 1_024

/** Longest accepted cache key or job id, in UTF-16 units. */
const maxKeyLength = 65_536

/** Longest accepted lock key: an exclusive load locks its cache key, with the address of the cache before it. */
const maxLockKeyLength = maxKeyLength + 8 * maxNameLength

const text = (field: string, value: unknown, max: number): InvalidInput | undefined => {
  if (typeof value !== "string") return new InvalidInput({ field, detail: `must be a string, got ${describe(value)}` })
  if (value.length === 0) return new InvalidInput({ field, detail: "must not be empty" })
  if (value.length > max) {
    return new InvalidInput({ field, detail: `must have at most ${max} characters, has ${value.length}` })
  }
  return undefined
}

const describe = (value: unknown): string => (typeof value === "number" ? String(value) : typeof value)

export const name = (field: string, value: unknown): InvalidInput | undefined => text(field, value, maxNameLength)

export const key = (value: unknown, field = "key"): InvalidInput | undefined => text(field, value, maxKeyLength)

export const lockKey = (value: unknown): InvalidInput | undefined => text("key", value, maxLockKeyLength)

/**
 * Reads a duration in milliseconds.
 *
 * Must be positive and finite, unless `zero` or `infinity` means something to the caller.
 */
export const millis = (
  field: string,
  input: Duration.Input,
  allow: { readonly zero?: boolean; readonly infinity?: boolean } = {}
): number | InvalidInput => {
  const duration = input === null || input === undefined || Number.isNaN(input) ? undefined : readDuration(input)
  if (duration === undefined) {
    return new InvalidInput({ field, detail: `must be a duration, got ${describe(input)}` })
  }
  const value = Duration.toMillis(duration)
  if (Number.isNaN(value) || value < 0 || (value === 0 && allow.zero !== true)) {
    return new InvalidInput({ field, detail: `must be ${allow.zero ? "zero or more" : "positive"}, got ${value} ms` })
  }
  if (value === Number.POSITIVE_INFINITY && allow.infinity !== true) {
    return new InvalidInput({ field, detail: "must be finite" })
  }
  return value
}

const readDuration = (input: Duration.Input): Duration.Duration | undefined => {
  const known = typeof input === "string" ? written.get(input) : undefined
  if (known !== undefined) return known
  const result = Duration.fromInput(input)
  if (result._tag === "None") return undefined
  if (typeof input === "string" && written.size < 256) written.set(input, result.value)
  return result.value
}

/** Durations written out in the code, as most are: parsing `"60 seconds"` costs more than a cache hit. */
const written = new Map<string, Duration.Duration>()

/** Reads a whole number of at least `min`. */
export const integer = (field: string, value: unknown, min: number): number | InvalidInput =>
  typeof value === "number" && Number.isSafeInteger(value) && value >= min
    ? value
    : new InvalidInput({ field, detail: `must be a whole number of at least ${min}, got ${describe(value)}` })

/** What is wrong with a value that was read, if anything. */
export const invalidOf = (value: unknown): InvalidInput | undefined =>
  value instanceof InvalidInput ? value : undefined

/** Joins name parts into one address; `:` and `%` inside a part are escaped, so no two lists of parts meet. */
export const address = (...parts: ReadonlyArray<string>): string => parts.map(escape).join(":")

/** One part of an {@link address}, for a caller that has the others joined already. */
export const escape = (part: string): string =>
  part.includes(":") || part.includes("%") ? part.replace(/[%:]/g, (char) => (char === "%" ? "%25" : "%3A")) : part
