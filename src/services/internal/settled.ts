import type * as Effect from "effect/Effect"
import type * as Exit from "effect/Exit"

/**
 * The success that an effect already is, if it is one: ports and codecs answer with
 * an `Exit` when they had nothing to wait for, and composing it would cost more than it did.
 *
 * Of what they answer with, only an `Exit` has this tag; `Exit.isExit` looks for a
 * brand along the prototypes, which is what a hit in memory would mostly spend.
 */
export const settled = <A, E, R>(effect: Effect.Effect<A, E, R>): Exit.Success<A> | undefined =>
  (effect as { readonly _tag?: unknown })._tag === "Success" ? (effect as Exit.Success<A>) : undefined
