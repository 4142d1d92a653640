/**
 * Random ids: of jobs, tasks, tokens, instances.
 *
 * ```ts
 * const uuid = yield* Uuid.Generator
 * const id = uuid()
 * ```
 *
 * @since 0.2.0
 */
import * as Context from "effect/Context"

/**
 * Makes a UUIDv4. Default: the platform's `crypto.randomUUID`, which is ten times as fast as
 * `SecureRandom.uuidV4Unsafe` as it draws its random numbers in bulk. Simulations provide one with a seed.
 *
 * @since 0.2.0
 */
export const Generator: Context.Reference<() => string> = Context.Reference<() => string>("cohort/services/Uuid", {
  defaultValue: () => () => globalThis.crypto.randomUUID()
})
