import type * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"

/**
 * The success that an effect already is, if it is one: ports and codecs answer with
 * an `Exit` when they had nothing to wait for, and composing it would cost more than it did.
 */
export const settled = <A, E, R>(effect: Effect.Effect<A, E, R>): Exit.Success<A> | undefined =>
  Exit.isExit(effect) && Exit.isSuccess(effect) ? (effect as Exit.Success<A>) : undefined
