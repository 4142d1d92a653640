/** The replicated log and its stores, on a stream in memory: cut off, stalled, truncated, made anew. */
import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import { TestClock } from "effect/testing"
import * as AmqpCacheStore from "../../src/layers/amqp/AmqpCacheStore.ts"
import * as AmqpClaims from "../../src/layers/amqp/AmqpClaims.ts"
import * as AmqpLockStore from "../../src/layers/amqp/AmqpLockStore.ts"
import type { Entry } from "../../src/layers/amqp/log/Fold.ts"
import { decode, encode } from "../../src/layers/amqp/log/LogRecord.ts"
import type { LogStream } from "../../src/layers/amqp/log/LogStream.ts"
import * as Log from "../../src/layers/amqp/log/ReplicatedLog.ts"
import { Instance } from "../../src/services/index.ts"
import { settled } from "../../src/services/internal/settled.ts"
import { Payload } from "../../src/services/Payload.ts"
import { Unavailable } from "../../src/services/Reason.ts"

/** An offset that has no record. */
const nothing = Buffer.alloc(0)

/** A stream in memory. Records are delivered in later microtasks, one after the other. */
class MemoryStream {
  /** What is left of it. */
  records: Array<Buffer> = []
  first = 0
  private readonly links = new Set<Link>()

  get next(): number {
    return this.first + this.records.length
  }

  /** How one instance reaches it. */
  link(): Link {
    const link = new Link(this)
    this.links.add(link)
    return link
  }

  /** Whether an author has a session. */
  has(author: string): boolean {
    return [...this.links].some((link) => link.is(author))
  }

  append(body: Buffer): void {
    this.records.push(body)
    for (const link of this.links) link.wake()
  }

  /** Forgets all but the last records. */
  truncate(left = 0): void {
    this.first = this.next - left
    this.records = left === 0 ? [] : this.records.slice(-left)
  }

  /** Forgets what so many bytes do not hold. */
  retain(most: number): void {
    let left = 0
    for (let bytes = 0; left < this.records.length && bytes < most; left++)
      bytes += this.records.at(-1 - left)!.length + 200
    if (left < this.records.length) this.truncate(left)
  }

  /** Makes it anew, empty, or as it was before its last records; everybody is cut off. */
  remake(left: number): void {
    if (left === 0) this.first = 0
    this.records = this.records.slice(0, left)
    for (const link of this.links) link.reset()
  }
}

class Link implements LogStream {
  /** Delivers nothing, and does not tell. */
  stalled = false
  /** Loses what is appended, and does not tell. */
  lossy = false
  /** What was lost. */
  readonly lost: Array<Buffer> = []
  /** So many of the next records are refused. */
  refusing = 0
  opened = 0
  /** Delivers so many records more. */
  allowance = Number.POSITIVE_INFINITY
  /** How long it takes to open, in milliseconds. */
  slowness = 0
  private refuses = false
  private readonly stream: MemoryStream
  private session:
    | { readonly author: string; cursor: number; readonly onRecord: (offset: number, body: Buffer) => void }
    | undefined
  private onEnd: (cause: unknown) => void = () => {}
  private waking = false

  constructor(stream: MemoryStream) {
    this.stream = stream
  }

  readonly open: LogStream["open"] = ({ author, from, onEnd, onRecord }) =>
    Effect.gen({ self: this }, function* () {
      if (this.refuses) return yield* new Unavailable({ backend: "rabbitmq", detail: "refused" })
      this.opened++
      yield* Effect.sleep(this.slowness)
      const { first } = this.stream
      const session = { author, cursor: from === "first" ? first : Math.max(from, first), onRecord }
      this.session = session
      this.onEnd = onEnd
      yield* Effect.addFinalizer(() =>
        Effect.sync(() => {
          if (this.session === session) this.session = undefined
        })
      )
      this.wake()
      // The first records come before it is said to be open.
      yield* Effect.promise(() => new Promise((resolve) => setImmediate(resolve)))
      return {
        append: (body, refused) => {
          if (this.session !== session) queueMicrotask(() => refused("no connection"))
          else if (this.refusing > 0) {
            this.refusing--
            queueMicrotask(() => refused("refused"))
          } else if (this.lossy) this.lost.push(body)
          else this.stream.append(body)
        },
        probe: (other, absent) => {
          if (!this.stream.has(other)) queueMicrotask(absent)
        }
      }
    })

  is(author: string): boolean {
    return this.session?.author === author
  }

  wake(): void {
    if (this.waking) return
    this.waking = true
    queueMicrotask(() => {
      this.waking = false
      const { session, stream } = this
      if (session === undefined || this.stalled) return
      session.cursor = Math.max(session.cursor, stream.first)
      while (stream.records[session.cursor - stream.first] === nothing) session.cursor++
      if (session.cursor >= stream.next || this.allowance === 0) return
      this.allowance--
      const offset = session.cursor++
      session.onRecord(offset, stream.records[offset - stream.first]!)
      this.wake()
    })
  }

  /** Delivers the last records once more. */
  repeat(count: number): void {
    const { records, next } = this.stream
    for (let offset = next - count; offset < next; offset++) {
      this.session!.onRecord(offset, records[offset - this.stream.first]!)
    }
  }

  reset(): void {
    this.session = undefined
    this.onEnd("reset")
  }

  cut(): void {
    this.refuses = true
    this.reset()
  }

  heal(): void {
    this.refuses = false
  }
}

/** Lets everything happen that needs no time. */
const settle = Effect.promise(async () => {
  for (let i = 0; i < 5; i++) await new Promise((resolve) => setImmediate(resolve))
})

const pass = (seconds: number) =>
  Effect.gen(function* () {
    for (let i = 0; i < seconds * 10; i++) {
      yield* TestClock.adjust("100 millis")
      yield* settle
    }
  })

/** What is made here has a wall clock that is so many milliseconds ahead. */
const skewed = <A, E, R>(effect: Effect.Effect<A, E, R>, millis: number) =>
  Clock.clockWith((clock) => {
    const other: Clock.Clock = Object.assign(Object.create(clock), {
      currentTimeMillisUnsafe: () => clock.currentTimeMillisUnsafe() + millis
    })
    return Effect.provideService(effect, Clock.Clock, other)
  })

const start = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.forkChild(effect, { startImmediately: true })

const ended = <A, E>(fiber: Fiber.Fiber<A, E>) => fiber.pollUnsafe() !== undefined

/** What comes of an effect without time passing. */
const now = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.gen(function* () {
    const fiber = yield* start(effect)
    yield* settle
    assert.isTrue(ended(fiber), "an end at once")
    return yield* Fiber.join(fiber)
  })

const unavailable = (fiber: Fiber.Fiber<unknown, unknown>) => {
  const exit = fiber.pollUnsafe()
  assert.isTrue(exit !== undefined && Exit.isFailure(exit) && String(exit.cause).includes("Unavailable"), String(exit))
}

const logOn = (link: LogStream, options: Log.Options = {}) => Log.make(link, { timeout: 2_000, ...options })

/** A fold that keeps what it was told of: the spaces of resets, which stand for any record. */
const recorder = () => {
  const fold = {
    begun: [] as Array<number>,
    seen: [] as Array<string>,
    fences: [] as Array<number>,
    begin: (first: number) => {
      fold.begun.push(first)
      fold.seen.length = 0
    },
    apply: ({ fence, record }: Entry) => {
      if (record.kind !== "reset") return undefined
      fold.seen.push(record.space)
      fold.fences.push(fence)
      return fold.seen.length
    }
  }
  return fold
}

const say = (text: string) => () => ({ kind: "reset", space: text }) as const

const recording = (link: Link) =>
  Effect.gen(function* () {
    const log = yield* logOn(link)
    const fold = recorder()
    yield* log.attach(fold)
    yield* settle
    return { link, log, fold, say: (text: string) => log.append(say(text)) }
  })

describe("the replicated log", () => {
  it.effect("whoever starts waits until it has caught up, while there is something to read", () =>
    Effect.gen(function* () {
      const stream = new MemoryStream()
      const a = yield* recording(stream.link())
      for (let i = 0; i < 20; i++) yield* now(a.say(`${i}`))
      for (const stalls of [false, true]) {
        const link = stream.link()
        const log = yield* logOn(link, { eager: true })
        const fold = recorder()
        link.allowance = 0
        const starting = yield* start(log.attach(fold))
        for (let i = 0; i < 8; i++) {
          link.allowance = 1
          link.wake()
          yield* pass(1)
          assert.isFalse(ended(starting))
        }
        if (!stalls) {
          link.allowance = Number.POSITIVE_INFINITY
          link.wake()
        }
        yield* pass(stalls ? 4 : 1.5)
        assert.isTrue(ended(starting))
        assert.strictEqual(log.isFresh(), !stalls)
        if (!stalls) assert.lengthOf(fold.seen, 20)
      }
    })
  )

  it.effect("whoever starts is not kept for longer than half a minute, whatever there is to read", () =>
    Effect.gen(function* () {
      const stream = new MemoryStream()
      yield* recording(stream.link())
      const link = stream.link()
      link.lossy = true
      const log = yield* logOn(link, { eager: true })
      const starting = yield* start(log.attach(recorder()))
      yield* pass(29)
      assert.isFalse(ended(starting))
      yield* pass(2)
      assert.isTrue(ended(starting))
    })
  )

  it.effect("an append is answered at its place in the one order, on every instance", () =>
    Effect.gen(function* () {
      const stream = new MemoryStream()
      const a = yield* recording(stream.link())
      const b = yield* recording(stream.link())
      const answers = yield* now(
        Effect.all([a.say("1"), b.say("2"), a.say("3"), b.say("4")], { concurrency: "unbounded" })
      )
      assert.deepStrictEqual(
        answers.map(({ answer }) => answer),
        [1, 2, 3, 4]
      )
      assert.deepStrictEqual(a.fold.seen, ["1", "2", "3", "4"])
      assert.deepStrictEqual(b.fold.seen, a.fold.seen)
      const late = yield* recording(stream.link())
      assert.deepStrictEqual(late.fold.seen, a.fold.seen)
    })
  )

  it.effect("cut off, an append fails within the timeout, or is made when the connection is back", () =>
    Effect.gen(function* () {
      const stream = new MemoryStream()
      const { fold, link, log, say } = yield* recording(stream.link())
      yield* now(say("before"))
      link.cut()
      const failing = yield* start(say("lost"))
      const reading = yield* start(log.fresh)
      const syncing = yield* start(log.sync)
      yield* pass(1)
      assert.isFalse(ended(failing))
      const made = yield* start(say("made"))
      yield* pass(1)
      for (const fiber of [failing, reading, syncing]) unavailable(fiber)
      assert.isFalse(log.isFresh())
      link.heal()
      yield* pass(0.9)
      assert.isTrue(ended(made))
      assert.isTrue(log.isFresh())
      assert.deepStrictEqual(fold.seen, ["before", "made"])
      assert.deepStrictEqual(fold.begun, [0])
    })
  )

  it.effect("goes on where it was, and reads every record once", () =>
    Effect.gen(function* () {
      const stream = new MemoryStream()
      const a = yield* recording(stream.link())
      const b = yield* recording(stream.link())
      const expected: Array<string> = []
      for (let round = 0; round < 20; round++) {
        b.link.cut()
        for (let i = 0; i < round % 3; i++) {
          expected.push(`${round}.${i}`)
          yield* now(a.say(`${round}.${i}`))
        }
        b.link.heal()
        yield* pass(0.3)
        expected.push(`${round} of b`)
        yield* now(b.say(`${round} of b`))
      }
      for (const { fold } of [a, b]) {
        assert.deepStrictEqual(fold.seen, expected)
        assert.deepStrictEqual(fold.begun, [0])
      }
      assert.isAtLeast(b.link.opened, 20)
    })
  )

  it.effect("what a session had on its way comes to nothing once the next one has sent something", () =>
    Effect.gen(function* () {
      const stream = new MemoryStream()
      const a = yield* recording(stream.link())
      const b = yield* recording(stream.link())
      a.link.lossy = true
      const old = yield* start(a.say("old"))
      yield* settle
      a.link.lossy = false
      a.link.reset()
      yield* pass(0.5)
      unavailable(old)
      yield* now(a.say("new"))
      // The network was held up, and has it all the same.
      for (const body of a.link.lost) stream.append(body)
      yield* now(b.say("end"))
      const c = yield* recording(stream.link())
      for (const { fold } of [a, b, c]) assert.deepStrictEqual(fold.seen, ["new", "end"])
    })
  )

  it.effect("is ready when it has read the mark of this session, not of one before", () =>
    Effect.gen(function* () {
      const stream = new MemoryStream()
      const { fold, link, log, say } = yield* recording(stream.link())
      link.cut()
      link.stalled = true
      link.heal()
      yield* pass(0.5)
      link.cut()
      link.stalled = false
      link.heal()
      let early = 0
      const waiting = yield* start(say("1"))
      const { append } = stream
      stream.append = (body) => {
        if (decode(body)?.record.kind === "reset") early = log.isFresh() ? 0 : 1
        append.call(stream, body)
      }
      yield* pass(0.5)
      yield* Fiber.join(waiting)
      assert.strictEqual(early, 0)
      assert.deepStrictEqual(fold.seen, ["1"])
    })
  )

  it.effect("what was on its way when the connection went is answered when it is known what became of it", () =>
    Effect.gen(function* () {
      const stream = new MemoryStream()
      const { fold, link, say } = yield* recording(stream.link())
      link.lossy = true
      const lost = yield* start(say("lost"))
      link.lossy = false
      link.stalled = true
      const arrived = yield* start(say("arrived"))
      yield* settle
      assert.isFalse(ended(arrived))
      link.cut()
      link.stalled = false
      link.heal()
      yield* pass(0.5)
      assert.strictEqual((yield* Fiber.join(arrived)).answer, 1)
      unavailable(lost)
      assert.deepStrictEqual(fold.seen, ["arrived"])
    })
  )

  it.effect("a tail that stalls is not fresh, and is opened again", () =>
    Effect.gen(function* () {
      const stream = new MemoryStream()
      const { link, log, say } = yield* recording(stream.link())
      yield* pass(10)
      assert.isTrue(log.isFresh())
      assert.strictEqual(link.opened, 1)
      link.stalled = true
      yield* pass(3)
      assert.isTrue(log.isFresh())
      yield* pass(1.5)
      assert.isFalse(log.isFresh())
      const reading = yield* start(log.fresh)
      yield* pass(2)
      unavailable(reading)
      link.stalled = false
      yield* pass(5)
      assert.isTrue(log.isFresh())
      assert.isAbove(link.opened, 1)
      yield* now(say("again"))
    })
  )

  it.effect("a session whose first mark is refused is not the last one", () =>
    Effect.gen(function* () {
      const stream = new MemoryStream()
      const other = yield* recording(stream.link())
      const { link, log, say } = yield* recording(stream.link())
      link.cut()
      link.refusing = 1
      link.heal()
      for (let i = 0; i < 10; i++) {
        yield* pass(0.1)
        yield* now(other.say(`${i}`))
      }
      assert.strictEqual(link.refusing, 0)
      assert.isTrue(log.isFresh())
      yield* now(say("on"))
    })
  )

  it.effect("a record that is delivered more than once is read once", () =>
    Effect.gen(function* () {
      const stream = new MemoryStream()
      const { fold, link, log, say } = yield* recording(stream.link())
      for (const text of ["1", "2", "3"]) yield* now(say(text))
      const offset = log.offset()
      link.repeat(2)
      assert.strictEqual(log.offset(), offset)
      yield* now(say("4"))
      link.cut()
      link.heal()
      yield* pass(0.5)
      link.repeat(3)
      yield* now(say("5"))
      assert.deepStrictEqual(fold.seen, ["1", "2", "3", "4", "5"])
      assert.deepStrictEqual(fold.begun, [0])
    })
  )

  it.effect("a tail that hears others but not itself is not fresh", () =>
    Effect.gen(function* () {
      const stream = new MemoryStream()
      const a = yield* recording(stream.link())
      const b = yield* recording(stream.link())
      b.link.lossy = true
      for (let i = 0; i < 10; i++) {
        yield* pass(0.5)
        yield* now(a.say("x"))
      }
      assert.lengthOf(b.fold.seen, 10)
      assert.isFalse(b.log.isFresh())
      assert.isTrue(a.log.isFresh())
    })
  )

  /** As long as it was, so that the same offset is there. */
  const refill = (stream: MemoryStream) => {
    for (let i = 0; i < 5; i++) stream.append(Buffer.from("nothing of ours"))
  }
  const changes: ReadonlyArray<readonly [string, (stream: MemoryStream) => void, ReadonlyArray<string>]> = [
    ["made anew", (stream) => stream.remake(0), []],
    ["made anew and filled", (stream) => [stream.remake(0), refill(stream)], []],
    // Both have made their mark, then "1", "2", "3".
    ["shorter than it was", (stream) => stream.remake(3), ["1"]],
    ["another from some record on", (stream) => [stream.remake(3), refill(stream)], ["1"]],
    ["truncated past what was read", (stream) => [stream.truncate(0), refill(stream)], []]
  ]
  for (const [what, change, left] of changes) {
    it.effect(`a stream that was ${what} while an instance was away is read from its start, and fences grow`, () =>
      Effect.gen(function* () {
        const stream = new MemoryStream()
        const a = yield* recording(stream.link())
        const b = yield* recording(stream.link())
        for (const text of ["1", "2", "3"]) yield* now(a.say(text))
        assert.deepStrictEqual(b.fold.seen, ["1", "2", "3"])
        for (const { link } of [a, b]) link.cut()
        yield* pass(0.1)
        change(stream)
        for (const { link } of [a, b]) link.heal()
        yield* pass(4)
        const fences = Math.max(...a.fold.fences)
        yield* now(b.say("new"))
        for (const { fold } of [a, b]) {
          assert.deepStrictEqual(fold.seen, [...left, "new"])
          assert.lengthOf(fold.begun, 2)
          assert.isAbove(fold.fences.at(-1)!, fences)
          assert.isTrue(Number.isSafeInteger(fold.fences.at(-1)))
        }
      })
    )
  }

  it.effect("a tail that retention overtakes is read from what is left, and not with a hole", () =>
    Effect.gen(function* () {
      const stream = new MemoryStream()
      const a = yield* recording(stream.link())
      const b = yield* recording(stream.link())
      yield* now(b.say("before"))
      b.link.stalled = true
      for (const text of ["1", "2", "3", "4"]) yield* now(a.say(text))
      stream.truncate(2)
      b.link.stalled = false
      b.link.wake()
      yield* pass(0.5)
      yield* now(b.say("5"))
      assert.deepStrictEqual(b.fold.seen, ["3", "4", "5"])
      assert.lengthOf(b.fold.begun, 2)
    })
  )

  it.effect("offsets that have no record are no hole", () =>
    Effect.gen(function* () {
      const stream = new MemoryStream()
      const a = yield* recording(stream.link())
      for (const [i, offsets] of [0, 1, 3, 1, 5].entries()) {
        for (let j = 0; j < offsets; j++) stream.append(nothing)
        const saying = yield* start(a.say(`${i}`))
        yield* pass(0.5)
        yield* Fiber.join(saying)
      }
      assert.deepStrictEqual(a.fold.begun, [0])
      assert.strictEqual(a.link.opened, 3)
      const b = yield* recording(stream.link())
      yield* pass(0.5)
      assert.deepStrictEqual(b.fold.seen, ["0", "1", "2", "3", "4"])
      assert.deepStrictEqual(b.fold.begun, [0])
    })
  )

  it.effect("fences grow over a stream that is made anew with nobody left who knew it", () =>
    Effect.gen(function* () {
      const stream = new MemoryStream()
      const first = yield* Scope.make()
      const a = yield* Scope.provide(recording(stream.link()), first)
      for (let i = 0; i < 100; i++) yield* now(a.say("x"))
      yield* Scope.close(first, Exit.void)
      yield* pass(0.1)
      stream.remake(0)
      const b = yield* recording(stream.link())
      yield* now(b.say("y"))
      const last = a.fold.fences.at(-1)!
      assert.isAbove(b.fold.fences[0]!, last)
      // Who comes with a clock that is behind takes the epoch from the others.
      const records = stream.next
      stream.append(encode({ author: "ahead", seq: 0, record: { kind: "mark", at: 3_600_000, epoch: 0 } }))
      yield* pass(2)
      stream.truncate(stream.next - records - 1)
      const c = yield* recording(stream.link())
      yield* now(c.say("z"))
      assert.strictEqual(c.fold.fences.at(-1), b.fold.fences.at(-1))
      assert.isAbove(c.fold.fences.at(-1)!, 3_600_000_000)
    })
  )

  it.effect("fences grow on one stream whatever the clocks say, and however much it has forgotten", () =>
    Effect.gen(function* () {
      const stream = new MemoryStream()
      const a = yield* skewed(recording(stream.link()), 300_000)
      for (let i = 0; i < 100; i++) {
        yield* now(a.say("busy"))
        yield* pass(0.1)
      }
      stream.truncate(30)
      const b = yield* recording(stream.link())
      yield* now(b.say("b"))
      yield* now(a.say("a"))
      for (const { fold } of [a, b]) {
        const [first, second, third] = fold.fences.slice(-3) as [number, number, number]
        assert.isTrue(first < second && second < third, `${first} ${second} ${third}`)
      }
      assert.strictEqual(a.fold.fences.at(-1), b.fold.fences.at(-1))
    })
  )

  it.effect("a broker that is slow to open a session does not have everything read again", () =>
    Effect.gen(function* () {
      const stream = new MemoryStream()
      const { fold, link, say } = yield* recording(stream.link())
      yield* now(say("1"))
      link.slowness = 3_000
      link.cut()
      link.heal()
      link.stalled = true
      yield* pass(4.5)
      link.stalled = false
      link.wake()
      yield* pass(1)
      yield* now(say("2"))
      assert.deepStrictEqual(fold.begun, [0])
    })
  )

  it.effect("closing answers all who wait", () =>
    Effect.gen(function* () {
      const stream = new MemoryStream()
      const scope = yield* Scope.make()
      const { link, log, say } = yield* Scope.provide(recording(stream.link()), scope)
      link.cut()
      const waiting = [yield* start(say("1")), yield* start(log.fresh), yield* start(log.sync)]
      yield* Scope.close(scope, Exit.void)
      yield* settle
      for (const fiber of waiting) unavailable(fiber)
      unavailable(yield* start(say("2")))
    })
  )
})

const payload = (value: unknown) => Payload.fromTree(value)

const cacheOn = (link: LogStream, options?: AmqpCacheStore.Options, logOptions: Log.Options = {}) =>
  Effect.gen(function* () {
    const log = yield* logOn(link, logOptions)
    const store = yield* Effect.provideService(AmqpCacheStore.make(options), Log.ReplicatedLog, log)
    yield* settle
    return store
  })

describe("a cache on the log", () => {
  for (const reads of ["local", "latest"] as const) {
    it.effect(`has misses when its tail stalls, and not what is out of date, with ${reads} reads`, () =>
      Effect.gen(function* () {
        const stream = new MemoryStream()
        const [here, there] = [stream.link(), stream.link()]
        const a = yield* cacheOn(here)
        const b = yield* cacheOn(there, { reads })
        yield* now(a.set("s", [{ key: "k", payload: payload(1) }], undefined))
        const reserved = yield* now(b.reserve("s", "loaded before"))
        const records = stream.next
        for (let i = 0; i < 100; i++) assert.strictEqual((yield* now(b.get("s", "k")))?.json, "1")
        if (reads === "local") {
          assert.strictEqual(stream.next, records)
          assert.isDefined(settled(b.get("s", "k")), "in the call")
        }
        there.stalled = true
        yield* now(a.set("s", [{ key: "k", payload: payload(2) }], undefined))
        if (reads === "local") assert.strictEqual((yield* now(b.get("s", "k")))?.json, "1")
        yield* pass(4.5)
        assert.isUndefined(yield* now(b.get("s", "k")))
        assert.deepStrictEqual(yield* now(b.getMany("s", ["k", "k"])), [undefined, undefined])
        assert.isUndefined(yield* now(b.ttl("s", "k")))
        assert.deepStrictEqual(yield* now(b.keys("s")), [])
        const reservation = yield* now(b.reserve("s", "loaded"))
        assert.isFalse(yield* now(b.fill("s", "loaded", reservation, payload(3), undefined)))
        const writing = yield* start(b.set("s", [{ key: "k", payload: payload(4) }], undefined))
        const filling = yield* start(b.fill("s", "loaded before", reserved, payload(3), undefined))
        // However often it is opened again.
        yield* pass(10)
        assert.isUndefined(yield* now(b.get("s", "k")))
        for (const fiber of [writing, filling]) unavailable(fiber)
        there.stalled = false
        yield* pass(5)
        // What was asked for came through, though nobody could say so.
        assert.strictEqual((yield* now(b.get("s", "k")))?.json, "4")
        assert.isUndefined(yield* now(b.get("s", "loaded")))
      })
    )

    it.effect(`fails when its connection is lost, with ${reads} reads`, () =>
      Effect.gen(function* () {
        const stream = new MemoryStream()
        const link = stream.link()
        const store = yield* cacheOn(link, { reads })
        yield* now(store.set("s", [{ key: "k", payload: payload(1) }], undefined))
        link.stalled = true
        yield* pass(4.5)
        link.cut()
        link.stalled = false
        yield* pass(0.5)
        const reading = yield* start(store.get("s", "k"))
        const reserving = yield* start(store.reserve("s", "k"))
        yield* pass(2)
        unavailable(reading)
        unavailable(reserving)
        link.heal()
        yield* pass(1)
        assert.strictEqual((yield* now(store.get("s", "k")))?.json, "1")
      })
    )
  }

  it.effect("an entry lives its ttl on every instance, whatever their wall clocks say", () =>
    Effect.gen(function* () {
      const stream = new MemoryStream()
      const stores = [
        yield* skewed(cacheOn(stream.link()), -300_000),
        yield* cacheOn(stream.link()),
        yield* skewed(cacheOn(stream.link()), 300_000)
      ]
      yield* pass(5)
      for (const [i, store] of stores.entries()) {
        yield* now(store.set("s", [{ key: `${i}`, payload: payload(i) }], 60_000))
      }
      const counts = Effect.forEach(stores, (store) =>
        Effect.map(now(store.keys("s")), (keys: ReadonlyArray<string>) => keys.length)
      )
      yield* pass(58)
      assert.deepStrictEqual(yield* counts, [3, 3, 3])
      yield* pass(2)
      assert.deepStrictEqual(yield* counts, [0, 0, 0])
    })
  )

  it.effect("what the log is about to forget is written again, so that who starts has it, unless it was removed", () =>
    Effect.gen(function* () {
      const stream = new MemoryStream()
      const options = { maxBytes: 64_000, maxAge: 3_600_000 }
      const a = yield* cacheOn(stream.link(), {}, options)
      const b = yield* cacheOn(stream.link(), {}, options)
      yield* now(a.set("s", [{ key: "forever", payload: payload(1) }], undefined))
      yield* now(a.set("s", [{ key: "long", payload: payload(2) }], 7_200_000))
      yield* now(a.set("s", [{ key: "removed", payload: payload(3) }], undefined))
      const busy = Effect.gen(function* () {
        for (let i = 0; i < 60; i++) {
          for (let j = 0; j < 20; j++) yield* now(b.set("other", [{ key: "k", payload: payload(i) }], undefined))
          yield* pass(1)
          stream.retain(options.maxBytes)
        }
      })
      yield* busy
      assert.isAbove(stream.first, 500)
      yield* now(b.del("s", ["removed"]))
      yield* busy
      const c = yield* cacheOn(stream.link(), {}, options)
      assert.strictEqual((yield* now(c.get("s", "forever")))?.json, "1")
      assert.strictEqual((yield* now(c.get("s", "long")))?.json, "2")
      assert.isUndefined(yield* now(c.get("s", "removed")))
      const left = (yield* now(c.ttl("s", "long")))!
      assert.isAtMost(Math.abs(left - (yield* now(a.ttl("s", "long")))!), 1)
      const { records } = stream
      const kept = records.filter((body) => body.includes('"fill"') && body.includes("forever"))
      assert.isAtMost(kept.length, 3, "one for all, now and then")
    })
  )

  it.effect("however much is written meanwhile", () =>
    Effect.gen(function* () {
      const stream = new MemoryStream()
      const options = { maxBytes: 64_000, maxAge: 3_600_000 }
      const a = yield* cacheOn(stream.link(), {}, options)
      const keys = Array.from({ length: 24 }, (_, i) => `kept ${i}`)
      for (const key of keys) yield* now(a.set("s", [{ key, payload: payload("x".repeat(100)) }], undefined))
      for (let i = 0; i < 20; i++) {
        // A quarter of what is retained.
        for (let j = 0; j < 50; j++)
          yield* now(a.set("other", [{ key: "k", payload: payload("x".repeat(50)) }], undefined))
        yield* pass(1)
        stream.retain(options.maxBytes)
      }
      const late = yield* cacheOn(stream.link(), {}, options)
      assert.sameMembers([...(yield* now(late.keys("s")))], keys)
    })
  )

  it.effect("caches that take more than the log retains are not written again and again", () =>
    Effect.gen(function* () {
      const stream = new MemoryStream()
      const options = { maxBytes: 640_000, maxAge: 3_600_000 }
      const [a] = [
        yield* cacheOn(stream.link(), {}, options),
        yield* cacheOn(stream.link(), {}, options),
        yield* cacheOn(stream.link(), {}, options)
      ]
      for (let i = 0; i < 4_000; i++) {
        yield* now(a.set("s", [{ key: `k${i}`, payload: payload("x".repeat(10)) }], undefined))
        if (i % 200 === 0) yield* pass(1)
        stream.retain(options.maxBytes)
      }
      const before = stream.next
      yield* pass(60)
      const marks = 3 * 60
      assert.isBelow(stream.next - before - marks, 3_000)
    })
  )

  it.effect("an idle log keeps what is older than its age, too", () =>
    Effect.gen(function* () {
      const stream = new MemoryStream()
      const store = yield* cacheOn(stream.link(), {}, { maxAge: 100_000 })
      yield* now(store.set("s", [{ key: "k", payload: payload(1) }], undefined))
      yield* pass(80)
      stream.truncate(80)
      const late = yield* cacheOn(stream.link())
      assert.strictEqual((yield* now(late.get("s", "k")))?.json, "1")
    })
  )

  it.effect(
    "with latest reads, a read sees what was written anywhere before it; reads of one turn share a record",
    () =>
      Effect.gen(function* () {
        const stream = new MemoryStream()
        const link = stream.link()
        const a = yield* cacheOn(stream.link())
        const b = yield* cacheOn(link, { reads: "latest" })
        link.stalled = true
        yield* now(a.set("s", [{ key: "k", payload: payload(1) }], undefined))
        const before = stream.next
        const reads = yield* Effect.forEach(Array(100), () => start(b.get("s", "k")))
        yield* settle
        assert.isFalse(reads.some(ended))
        assert.strictEqual(stream.next, before + 1)
        link.stalled = false
        link.wake()
        yield* settle
        for (const read of reads) assert.strictEqual((yield* Fiber.join(read))?.json, "1")
      })
  )

  it.effect("a load from before the stream was made anew is not stored", () =>
    Effect.gen(function* () {
      const stream = new MemoryStream()
      const link = stream.link()
      const store = yield* cacheOn(link)
      for (let i = 0; i < 10; i++) yield* now(store.reset("other"))
      const [first, second] = [yield* now(store.reserve("s", "k")), yield* now(store.reserve("s", "k"))]
      assert.isTrue(yield* now(store.fill("s", "k", first, payload(1), undefined)))
      link.cut()
      stream.remake(0)
      link.heal()
      yield* pass(4)
      yield* now(store.del("s", ["k"]))
      assert.isFalse(yield* now(store.fill("s", "k", second, payload(2), undefined)))
      assert.isUndefined(yield* now(store.get("s", "k")))
    })
  )

  it.effect("a load that another instance overtook is not stored", () =>
    Effect.gen(function* () {
      const stream = new MemoryStream()
      const link = stream.link()
      const a = yield* cacheOn(link)
      const b = yield* cacheOn(stream.link())
      for (const write of [
        b.del("s", ["k"]),
        b.reset("s"),
        b.set("s", [{ key: "k", payload: payload(2) }], undefined)
      ]) {
        const reservation = yield* now(a.reserve("s", "k"))
        // It does not know yet when it asks.
        link.stalled = true
        yield* now(write)
        const filling = yield* start(a.fill("s", "k", reservation, payload(1), undefined))
        yield* settle
        link.stalled = false
        link.wake()
        yield* settle
        assert.isFalse(yield* Fiber.join(filling))
      }
      assert.strictEqual((yield* now(a.get("s", "k")))?.json, "2")
    })
  )
})

describe("ids on the log", () => {
  it.effect(
    "of a publisher that died before its job was stored are free after four timeouts, for who waits as well",
    () =>
      Effect.gen(function* () {
        const stream = new MemoryStream()
        const claimsOn = Effect.gen(function* () {
          const log = yield* logOn(stream.link())
          const claims = yield* Effect.provideService(AmqpClaims.make, Log.ReplicatedLog, log)
          yield* settle
          return claims
        })
        const [a, b] = [yield* claimsOn, yield* claimsOn]
        assert.isDefined(yield* now(a.claim("jobs", "x", false)))
        const waiting = yield* start(b.claim("jobs", "x", true))
        yield* pass(7.9)
        assert.isFalse(ended(waiting))
        yield* pass(0.2)
        assert.isTrue(ended(waiting))
        assert.isDefined(yield* Fiber.join(waiting))
      })
  )

  it.effect("are known to who starts, however many jobs wait that the log has forgotten", () =>
    Effect.gen(function* () {
      const stream = new MemoryStream()
      const options = { maxBytes: 4_000_000 }
      const claimsOn = Effect.gen(function* () {
        const log = yield* logOn(stream.link(), options)
        const claims = yield* Effect.provideService(AmqpClaims.make, Log.ReplicatedLog, log)
        yield* settle
        return claims
      })
      const a = yield* claimsOn
      const ids = Array.from({ length: 12_000 }, (_, i) => `job ${i}`)
      const each = <A, E>(some: ReadonlyArray<string>, put: (id: string) => Effect.Effect<A, E>) =>
        now(Effect.forEach(some, put, { concurrency: "unbounded" }))
      for (let i = 0; i < ids.length; i += 1_000) {
        yield* each(ids.slice(i, i + 1_000), (id) =>
          Effect.flatMap(a.claim("jobs", id, false), (token) => a.live({ channel: "jobs", id, token: token! }, 0))
        )
        yield* pass(1)
        stream.retain(options.maxBytes)
      }
      assert.isAbove(stream.first, 10_000)
      const late = yield* claimsOn
      const tokens = yield* each(ids, (id) => late.claim("jobs", id, false))
      assert.lengthOf(
        tokens.filter((token) => token !== undefined),
        0
      )
    })
  )
})

const lockOn = (link: LogStream, options?: AmqpLockStore.Options) =>
  Effect.gen(function* () {
    const log = yield* logOn(link)
    const store = yield* AmqpLockStore.make(options).pipe(
      Effect.provideService(Log.ReplicatedLog, log),
      Effect.provideServiceEffect(Instance.Instance, Instance.make())
    )
    yield* settle
    return store
  })

describe("a lock on the log", () => {
  const ttl = 30_000

  it.effect("that is held is found held by who starts when its grant is forgotten", () =>
    Effect.gen(function* () {
      const stream = new MemoryStream()
      const a = yield* lockOn(stream.link())
      const held = yield* now(a.acquire("s", "k", ttl))
      const waiting = yield* start(a.acquire("s", "k", ttl))
      yield* settle
      stream.truncate()
      const b = yield* lockOn(stream.link())
      const asking = yield* start(b.tryAcquire("s", "k", ttl))
      yield* pass(1.5)
      assert.isUndefined(yield* Fiber.join(asking))
      assert.isTrue(yield* now(a.renew(held, ttl)))
      yield* now(a.release(held))
      const second = yield* now(Fiber.join(waiting))
      assert.isAbove(second.fence, held.fence)
      assert.isUndefined(yield* now(b.tryAcquire("s", "k", ttl)))
      yield* now(a.release(second))
      assert.isAbove((yield* now(b.tryAcquire("s", "k", ttl)))!.fence, second.fence)
    })
  )

  it.effect("snapshots come by themselves, so that who starts need not ask", () =>
    Effect.gen(function* () {
      const stream = new MemoryStream()
      const a = yield* lockOn(stream.link(), { snapshotMillis: 60_000 })
      const held = yield* now(a.acquire("s", "k", 600_000))
      yield* pass(200)
      stream.truncate(100)
      const b = yield* lockOn(stream.link())
      assert.isUndefined(yield* now(b.tryAcquire("s", "k", ttl)))
      yield* now(a.release(held))
      assert.isDefined(yield* now(b.tryAcquire("s", "k", ttl)))
    })
  )

  it.effect("when nobody knows who holds what, locks begin anew after a while, which every lease has survived", () =>
    Effect.gen(function* () {
      const stream = new MemoryStream()
      const scope = yield* Scope.make()
      const link = stream.link()
      const a = yield* Scope.provide(lockOn(link), scope)
      const held = yield* now(a.acquire("s", "k", ttl))
      link.cut()
      stream.truncate()
      stream.append(Buffer.from("nothing of ours"))
      const b = yield* lockOn(stream.link(), { recovery: 40_000 })
      const c = yield* lockOn(stream.link(), { recovery: 40_000 })
      yield* pass(39)
      const early = yield* start(b.tryAcquire("s", "k", ttl))
      yield* pass(0.5)
      assert.isFalse(ended(early))
      yield* pass(3)
      yield* Fiber.await(early)
      const taken = (yield* now(c.tryAcquire("s", "other", ttl)))!
      assert.isAbove(taken.fence, held.fence)
      assert.isUndefined(yield* now(b.tryAcquire("s", "other", ttl)))
      // Back, the one that was away has nothing.
      link.heal()
      yield* pass(3)
      assert.isFalse(yield* now(a.renew(held, ttl)))
      assert.isUndefined(yield* now(a.tryAcquire("s", "other", ttl)))
      yield* Scope.close(scope, Exit.void)
    })
  )

  for (const [why, kind, snapshot] of [
    ["its question is refused", "ask", false],
    ["what it says after a while is refused", "genesis", false],
    ["a snapshot comes that leaves a hole", undefined, true]
  ] as const) {
    it.effect(`who knows nothing asks again when ${why}`, () =>
      Effect.gen(function* () {
        const stream = new MemoryStream()
        for (let i = 0; i < 10; i++) stream.append(Buffer.from("nothing of ours"))
        stream.truncate(1)
        let isRefusing = true
        const link = stream.link()
        const b = yield* lockOn(
          {
            open: (options) =>
              Effect.map(link.open(options), (session) => ({
                ...session,
                append: (body, refused) => {
                  if (isRefusing && decode(body)?.record.kind === kind) queueMicrotask(() => refused("refused"))
                  else session.append(body, refused)
                }
              }))
          },
          { recovery: 5_000 }
        )
        yield* pass(1)
        const record = { kind: "snapshot", asOf: 1, locks: [], seen: [] } as const
        if (snapshot) stream.append(encode({ author: "other", seq: 0, record }))
        yield* pass(7)
        isRefusing = false
        yield* pass(14)
        assert.isDefined(yield* now(b.tryAcquire("s", "k", ttl)))
      })
    )
  }

  for (const [how, end, seconds] of [
    ["died", (link: Link) => link.cut(), 3],
    [
      "is silent for ten seconds",
      (link: Link) => {
        link.lossy = true
        link.stalled = true
      },
      15
    ]
  ] as const) {
    it.effect(`a waiter whose instance ${how} is passed over`, () =>
      Effect.gen(function* () {
        const stream = new MemoryStream()
        const link = stream.link()
        const [a, b, c] = [yield* lockOn(stream.link()), yield* lockOn(link), yield* lockOn(stream.link())]
        const held = yield* now(a.acquire("s", "k", ttl))
        yield* start(b.acquire("s", "k", ttl))
        yield* settle
        const next = yield* start(c.acquire("s", "k", ttl))
        yield* settle
        end(link)
        yield* pass(seconds)
        assert.isTrue(yield* now(a.renew(held, ttl)))
        yield* now(a.release(held))
        yield* now(c.release(yield* now(Fiber.join(next))))
      })
    )
  }

  it.effect("one that was taken for dead waits again, from the end of the line", () =>
    Effect.gen(function* () {
      const stream = new MemoryStream()
      const [a, b, c] = [yield* lockOn(stream.link()), yield* lockOn(stream.link()), yield* lockOn(stream.link())]
      const held = yield* now(a.acquire("s", "k", ttl))
      const slow = yield* start(b.acquire("s", "k", ttl))
      yield* settle
      const seen = stream.next - 1
      const { author } = decode(stream.records.at(-1)!)!
      const next = yield* start(c.acquire("s", "k", ttl))
      yield* settle
      stream.append(encode({ author: "another", seq: 0, record: { kind: "gone", author, seen } }))
      yield* settle
      const last = yield* start(a.acquire("s", "k", ttl))
      yield* settle
      yield* now(a.release(held))
      yield* now(c.release(yield* now(Fiber.join(next))))
      assert.isFalse(ended(last))
      yield* now(b.release(yield* now(Fiber.join(slow))))
      yield* now(Fiber.join(last))
    })
  )

  it.effect("a holder that nobody waits for, and that is gone, leaves nothing", () =>
    Effect.gen(function* () {
      const stream = new MemoryStream()
      const link = stream.link()
      const a = yield* lockOn(link)
      const b = yield* lockOn(stream.link(), { snapshotMillis: 1_000 })
      for (let i = 0; i < 100; i++) yield* now(a.acquire("s", `k${i}`, 1_000))
      link.cut()
      yield* pass(20)
      yield* now(b.release((yield* now(b.tryAcquire("s", "k0", 1_000)))!))
      yield* pass(5)
      const snapshots = stream.records.map(String).filter((text) => text.includes('"snapshot"'))
      assert.include(snapshots[0], "k99")
      assert.notInclude(snapshots.at(-1), "k")
    })
  )

  it.effect("that was granted where retention has overtaken an instance is not granted to it as well", () =>
    Effect.gen(function* () {
      const stream = new MemoryStream()
      const link = stream.link()
      const a = yield* lockOn(stream.link())
      const b = yield* lockOn(link)
      yield* now(b.release((yield* now(b.tryAcquire("s", "k", ttl)))!))
      link.stalled = true
      const held = yield* now(a.acquire("s", "k", ttl))
      for (let i = 0; i < 3; i++) yield* now(a.release((yield* now(a.tryAcquire("s", "other", ttl)))!))
      stream.truncate()
      yield* pass(1)
      link.stalled = false
      link.wake()
      yield* settle
      const asking = yield* start(b.tryAcquire("s", "k", ttl))
      yield* pass(1.5)
      assert.isUndefined(yield* Fiber.join(asking))
      assert.isTrue(yield* now(a.renew(held, ttl)))
    })
  )

  it.effect("a grant that is read late is confirmed by a renewal before it is used", () =>
    Effect.gen(function* () {
      const stream = new MemoryStream()
      const link = stream.link()
      const a = yield* lockOn(stream.link())
      const b = yield* lockOn(link)
      const held = yield* now(a.acquire("s", "k", ttl))
      const waiting = yield* start(b.acquire("s", "k", 4_000))
      yield* settle
      link.stalled = true
      yield* now(a.release(held))
      yield* pass(2)
      assert.isFalse(ended(waiting))
      link.stalled = false
      link.wake()
      const sentAt = 2_000
      const grant = yield* now(Fiber.join(waiting))
      const first = grant.since
      assert.isTrue(yield* now(b.renew(grant, 4_000)))
      // Counted from the renewal, not from the last that was heard before.
      assert.isAtLeast(first, sentAt)
    })
  )

  it.effect("one that was told of its grant too late waits again, and who came next has it", () =>
    Effect.gen(function* () {
      const stream = new MemoryStream()
      const link = stream.link()
      const a = yield* lockOn(stream.link())
      const b = yield* lockOn(link)
      const held = yield* now(a.acquire("s", "k", ttl))
      const late = yield* start(b.acquire("s", "k", 1_000))
      yield* settle
      const next = yield* start(a.acquire("s", "k", ttl))
      yield* settle
      link.stalled = true
      yield* now(a.release(held))
      yield* pass(1.5)
      const taken = yield* now(Fiber.join(next))
      link.stalled = false
      link.wake()
      yield* settle
      assert.isFalse(ended(late))
      yield* now(a.release(taken))
      assert.isAbove((yield* now(Fiber.join(late))).fence, taken.fence)
    })
  )

  it.effect("a request that was given up while cut off is not there afterwards, nor is one that failed", () =>
    Effect.gen(function* () {
      const stream = new MemoryStream()
      const link = stream.link()
      const a = yield* lockOn(link)
      const b = yield* lockOn(stream.link())
      const held = yield* now(b.acquire("s", "k", ttl))
      const waiting = yield* start(a.acquire("s", "k", ttl))
      const interrupted = yield* start(a.acquire("s", "k", ttl))
      yield* settle
      const mine = yield* now(a.acquire("s", "mine", ttl))
      link.cut()
      yield* pass(0.1)
      const releasing = yield* start(a.release(mine))
      yield* start(Fiber.interrupt(interrupted))
      yield* pass(3)
      unavailable(waiting)
      unavailable(releasing)
      link.heal()
      yield* pass(3)
      yield* now(b.release(held))
      yield* now(b.release((yield* now(b.tryAcquire("s", "k", ttl)))!))
      assert.isDefined(yield* now(b.tryAcquire("s", "mine", ttl)))
    })
  )

  it.effect("a request that arrives after it was given up is given back", () =>
    Effect.gen(function* () {
      const stream = new MemoryStream()
      const a = yield* lockOn(stream.link())
      const b = yield* lockOn(stream.link())
      const held = yield* now(a.acquire("s", "k", ttl))
      const request = stream.records.find((body) => body.includes('"request"'))!
      yield* now(a.release(held))
      stream.append(request)
      yield* settle
      assert.isDefined(yield* now(b.tryAcquire("s", "k", ttl)))
    })
  )
})
