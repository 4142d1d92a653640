/** What the tests that do not compile are written with. */
import type * as Effect from "effect/Effect"
import type * as Layer from "effect/Layer"

/** `true` when two types are the same, not only assignable to each other. */
export type Equal<A, B> =
  (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2
    ? true
    : { readonly actual: A; readonly expected: B }

/** Compiles when the types are equal, and shows both when they are not. */
export const assertEqual = <A, B>(_: Equal<A, B>): void => {}

/** What an Effect or a Layer can fail with. */
export type ErrorOf<T> =
  T extends Effect.Effect<any, infer E, any> ? E : T extends Layer.Layer<any, infer E, any> ? E : "neither"

/** What an Effect or a Layer requires. */
export type RequirementsOf<T> =
  T extends Effect.Effect<any, any, infer R> ? R : T extends Layer.Layer<any, any, infer R> ? R : "neither"
