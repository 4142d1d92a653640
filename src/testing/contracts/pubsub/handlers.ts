/** What handlers may do, and for how long they are called. */
import { assert, describe } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import { Metrics, PubSub, Topic } from "../../../index.ts"
import { counting, unprintable } from "../support.ts"
import { decodedBy, type Fixture, listen, Notes, publish } from "./fixture.ts"

export const tests = ({ backend, test, waitFor, within, arrived }: Fixture): void => {
  describe("handlers", () => {
    test("one that fails, throws, dies or interrupts itself is logged with channel and payload, counted, and the next message runs", (cluster, logs) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        const b = yield* cluster.instance()
        const failures = yield* counting(Metrics.handlersFailed)
        const got: Array<string> = []
        yield* b.run(
          PubSub.subscribe(Notes, (text) => {
            got.push(text)
            switch (text) {
              case "fail":
                return Effect.fail("refused")
              case "throw":
                throw new Error("thrown")
              case "die":
                return Effect.andThen(Effect.yieldNow, Effect.die("a defect"))
              case "unprintable":
                throw unprintable
              case "unprintable later":
                return Effect.andThen(Effect.yieldNow, Effect.fail(unprintable))
              case "interrupt":
                return Effect.andThen(Effect.yieldNow, Effect.interrupt)
              case "nothing":
                return undefined as never
              default:
                return Effect.void
            }
          })
        )
        const texts = ["fail", "throw", "die", "unprintable", "unprintable later", "interrupt", "nothing"]
        for (const text of texts) yield* publish(a, text)
        yield* arrived(a, got)
        assert.deepStrictEqual(got, texts)
        for (const text of texts) {
          const entry = logs.find(({ annotations }) => String(annotations.payload).includes(text))
          assert.strictEqual(entry?.annotations.channel, "notes", text)
          assert.strictEqual(entry?.level, "WARN", text)
        }
        assert.strictEqual(yield* failures, texts.length)
      }))

    test("one that never returns holds up nobody else, and closing its scope interrupts it", (cluster) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        const b = yield* cluster.instance()
        const c = yield* cluster.instance()
        const scope = yield* Scope.make()
        let started = 0
        let interrupted = false
        yield* b
          .run(
            PubSub.subscribe(Notes, () => {
              started++
              return Effect.onInterrupt(Effect.never, () => Effect.sync(() => (interrupted = true)))
            })
          )
          .pipe(Scope.provide(scope))
        const lists = [yield* listen(b), yield* listen(c)]
        yield* publish(a, "one")
        yield* publish(a, "two")
        yield* arrived(a, ...lists)
        for (const list of lists) assert.deepStrictEqual(list, ["one", "two"])
        assert.strictEqual(started, 1)
        yield* within(6, Scope.close(scope, Exit.void))
        assert.isTrue(interrupted)
        yield* arrived(a, ...lists)
        assert.strictEqual(started, 1)
      }))

    test("one that ignores interruption is left behind within a bound, with a warning", (cluster, logs) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        const b = yield* cluster.instance()
        const scope = yield* Scope.make()
        let started = false
        yield* b
          .run(
            PubSub.subscribe(Notes, () => {
              started = true
              return Effect.uninterruptible(Effect.never)
            })
          )
          .pipe(Scope.provide(scope))
        yield* publish(a, "one")
        yield* waitFor(() => started, "the handler starts")
        yield* within(6, Scope.close(scope, Exit.void))
        assert.isTrue(logs.some(({ message }) => String(message).includes(`"notes"`)))
      }))

    test("one may end its own subscription", (cluster) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        const b = yield* cluster.instance()
        for (const pause of [Effect.void, Effect.yieldNow]) {
          const scope = yield* Scope.make()
          const got: Array<string> = []
          let running = 0
          const handler = (text: string) =>
            Effect.gen(function* () {
              running++
              got.push(text)
              yield* pause
              yield* Scope.close(scope, Exit.void)
              yield* Effect.never
            }).pipe(Effect.ensuring(Effect.sync(() => running--)))
          yield* b.run(PubSub.subscribe(Notes, handler)).pipe(Scope.provide(scope))
          const other = yield* listen(b)
          yield* publish(a, "one")
          yield* publish(a, "two")
          yield* arrived(a, other)
          // Nothing waits for the handler, so it ends without time passing.
          yield* Effect.yieldNow
          assert.deepStrictEqual(got, ["one"])
          assert.strictEqual(running, 0)
        }
      }))

    test("one runs with the services of its subscriber", (cluster) =>
      Effect.gen(function* () {
        class Name extends Context.Service<Name, string>()("test/Name") {}
        const a = yield* cluster.instance()
        const b = yield* cluster.instance()
        const got: Array<string> = []
        const handler = (text: string) => Name.useSync((name) => got.push(`${name}: ${text}`))
        yield* b.run(PubSub.subscribe(Notes, handler)).pipe(Effect.provideService(Name, "left"))
        yield* b.run(PubSub.subscribe(Notes, handler)).pipe(Effect.provideService(Name, "right"))
        yield* publish(a, "hello")
        yield* waitFor(() => got.length === 2, "both")
        assert.sameMembers(got, ["left: hello", "right: hello"])
      }))

    test("a message that does not decode is logged and counted, never a crash", (cluster, logs) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        const b = yield* cluster.instance()
        const dropped = yield* counting(Metrics.messagesUndecodable)
        const Numbers = Topic.make("notes", Schema.Number)
        const numbers: Array<number> = []
        yield* b.run(PubSub.subscribe(Numbers, (n) => Effect.sync(() => numbers.push(n))))
        const texts = yield* listen(b)
        yield* publish(a, "not a number")
        yield* a.run(PubSub.publish(Numbers, 7))
        yield* publish(a, "text")
        yield* waitFor(() => numbers.length === 1 && texts.length === 2, "what decodes")
        assert.deepStrictEqual(numbers, [7])
        assert.deepStrictEqual(texts, ["not a number", "text"])
        assert.strictEqual(yield* dropped, 3)
        const entry = logs.find(({ annotations }) => String(annotations.payload).includes("not a number"))
        assert.strictEqual(entry?.annotations.channel, "notes")
      }))

    test("a decoder that throws or dies, at once or later, drops that message only", (cluster) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        const b = yield* cluster.instance()
        const dropped = yield* counting(Metrics.messagesUndecodable)
        const Fragile = Topic.make(
          "fragile",
          decodedBy((text) => {
            if (text === "throw") throw new Error("thrown")
            if (text === "die") return Effect.die("a defect")
            if (text === "die later") return Effect.andThen(Effect.yieldNow, Effect.die("a defect"))
            return Effect.succeed(text)
          })
        )
        const got = yield* listen(b, Fragile)
        const again = yield* listen(b, Fragile)
        for (const text of ["throw", "die", "die later", "fine"]) yield* a.run(PubSub.publish(Fragile, text))
        yield* waitFor(() => got.length > 0 && again.length > 0, "the sound message")
        assert.deepStrictEqual([got, again], [["fine"], ["fine"]])
        assert.strictEqual(yield* dropped, 6)
      }))
  })

  describe("scopes", () => {
    test("closing the scope ends a subscription, and only that one", (cluster) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        const b = yield* cluster.instance()
        const scope = yield* Scope.make()
        const leaves = yield* listen(b).pipe(Scope.provide(scope))
        const stays = yield* listen(b)
        yield* publish(a, "one")
        yield* arrived(a, leaves, stays)
        yield* Scope.close(scope, Exit.void)
        yield* publish(a, "two")
        yield* arrived(a, stays)
        assert.deepStrictEqual(leaves, ["one"])
        assert.deepStrictEqual(stays, ["one", "two"])
      }))

    test("a subscription that has ended no longer decodes what comes", (cluster) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        const b = yield* cluster.instance()
        const scope = yield* Scope.make()
        let decoded = 0
        const counted = decodedBy((text) => {
          decoded++
          return Effect.succeed(text)
        })
        yield* listen(b, Topic.make("notes", counted)).pipe(Scope.provide(scope))
        const stays = yield* listen(b)
        yield* Scope.close(scope, Exit.void)
        yield* publish(a, "one")
        yield* arrived(a, stays)
        assert.strictEqual(decoded, 0)
      }))

    test("a channel left by its last subscriber can be subscribed to again", (cluster) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        const b = yield* cluster.instance()
        for (let i = 0; i < 3; i++) {
          const scope = yield* Scope.make()
          const got = yield* listen(b).pipe(Scope.provide(scope))
          yield* publish(a, `round ${i}`)
          yield* publish(b, `own ${i}`, { onlySelf: true })
          yield* arrived(a, got)
          assert.sameMembers(got, [`round ${i}`, `own ${i}`])
          yield* Scope.close(scope, Exit.void)
          yield* publish(a, "to nobody")
          yield* publish(b, "to nobody", { onlySelf: true })
          // Until it is on no wire any longer: nobody keeps it for who comes later.
          yield* backend.advance("100 millis")
        }
      }))

    test("what waits for a busy handler is dropped with the scope", (cluster) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        const b = yield* cluster.instance()
        const scope = yield* Scope.make()
        const started: Array<string> = []
        yield* b
          .run(
            PubSub.subscribe(Notes, (text) =>
              Effect.andThen(
                Effect.sync(() => started.push(text)),
                Effect.never
              )
            )
          )
          .pipe(Scope.provide(scope))
        const other = yield* listen(b)
        yield* publish(a, "one")
        yield* publish(a, "two")
        yield* arrived(a, other)
        yield* within(6, Scope.close(scope, Exit.void))
        yield* arrived(a, other)
        assert.deepStrictEqual(started, ["one"])
      }))

    test("an instance that closes leaves the others as they were", (cluster) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        const b = yield* cluster.instance()
        const c = yield* cluster.instance()
        const closed = yield* listen(b)
        const open = yield* listen(c)
        yield* publish(a, "one")
        yield* arrived(a, closed, open)
        yield* b.close
        yield* publish(a, "two")
        yield* arrived(a, open)
        assert.deepStrictEqual(closed, ["one"])
        assert.deepStrictEqual(open, ["one", "two"])
      }))
  })
}
