/** What the tests of `PubSub` share. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import * as SchemaGetter from "effect/SchemaGetter"
import type * as Scope from "effect/Scope"
import { PubSub, Topic } from "../../../index.ts"
import type { Backend, TestInstance } from "../Backend.ts"
import { support } from "../support.ts"

export const Notes = Topic.make("notes", Schema.String)

/** Subscribes, and collects what comes. */
export const listen = (
  instance: TestInstance,
  topic: Topic.Topic<string> = Notes,
  options?: PubSub.SubscribeOptions<string, never>
): Effect.Effect<Array<string>, PubSub.PubSubError, Scope.Scope> =>
  Effect.suspend(() => {
    const got: Array<string> = []
    return Effect.as(instance.run(PubSub.subscribe(topic, (text) => Effect.sync(() => got.push(text)), options)), got)
  })

export const publish = (instance: TestInstance, text: string, options?: PubSub.PublishOptions) =>
  instance.run(PubSub.publish(Notes, text, options))

/** Asserts that an operation fails with `InvalidInput` for the field. */
export const refused = <A, R>(operation: Effect.Effect<A, PubSub.PubSubError, R>, field: string) =>
  Effect.map(Effect.flip(operation), (error) => {
    assert.instanceOf(error, PubSub.PubSubError)
    assert.strictEqual(error.reason._tag, "InvalidInput")
    assert.strictEqual(error.reason._tag === "InvalidInput" && error.reason.field, field)
    assert.include(error.message, field)
  })

export const unavailable = <A, R>(operation: Effect.Effect<A, PubSub.PubSubError, R>) =>
  Effect.map(Effect.flip(operation), (error) => {
    assert.instanceOf(error, PubSub.PubSubError)
    assert.strictEqual(error.reason._tag, "Unavailable")
  })

/** A string whose decoding does as `decode` says. */
export const decodedBy = (decode: (text: string) => Effect.Effect<string>) =>
  Schema.String.pipe(
    Schema.decodeTo(Schema.String, {
      decode: SchemaGetter.transformEffect(decode),
      encode: SchemaGetter.passthrough()
    })
  )

/** What the tests of one backend share. */
export const make = (backend: Backend) => {
  const { scenario, test, waitFor, within } = support(backend)
  let markers = 0

  /** Waits until all that `from` has published so far has arrived: a marker comes after it, and is taken out again. */
  const arrived = (from: TestInstance, ...lists: ReadonlyArray<Array<string>>) =>
    Effect.gen(function* () {
      const marker = `marker ${++markers}`
      yield* publish(from, marker, { skipSelf: false })
      yield* waitFor(() => lists.every((list) => list.includes(marker)), "the marker arrives")
      for (const list of lists) list.splice(list.indexOf(marker), 1)
    })

  return { backend, scenario, test, waitFor, within, arrived }
}

export type Fixture = ReturnType<typeof make>
