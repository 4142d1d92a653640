/** Reads worker modes; see `WorkerMode`. */
import * as Result from "effect/Result"
import { InvalidInput } from "../Reason.ts"

/**
 * A mode, read.
 *
 * @since 0.2.0
 */
export interface WorkerMode {
  /** As it was written. */
  readonly text: string
  /** Whether the instance answers requests. */
  readonly requests: boolean
  /** Whether it does the background work of a service. */
  readonly serves: (key: string) => boolean
}

const all = "*"
const requests = "!"
const nothing = "-"

/**
 * Reads a mode; fails with `InvalidInput` for the field `workerMode`.
 *
 * @since 0.2.0
 */
export const parse = (text: string): Result.Result<WorkerMode, InvalidInput> => {
  const invalid = (detail: string) => Result.fail(new InvalidInput({ field: "workerMode", detail }))
  if (typeof text !== "string") return invalid(`must be a string, got ${typeof text}`)
  if (text.trim() === "") return Result.succeed({ text, requests: true, serves: () => true })
  const parts = text.split(",").map((part) => part.trim())
  const wrong = parts.find((part) => part === "" || /\s/.test(part) || (part.length > 1 && /[!*]/.test(part)))
  if (wrong !== undefined) {
    return invalid(`must be empty, or "!", "*", "-" and service keys with commas between them; "${wrong}" is none`)
  }
  const words = new Set(parts)
  if (words.has(nothing) && words.size > 1) return invalid(`"-" is nothing, and stands alone; got "${text}"`)
  return Result.succeed({
    text,
    requests: words.has(requests),
    serves: (key) => words.has(all) || words.has(key)
  })
}
