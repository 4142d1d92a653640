/**
 * A value on its way through a backend.
 *
 * A `Payload` is a JSON value in either of its two forms: text (what goes over
 * a wire) or tree (what a Schema decodes). Each form is derived from the other
 * when it is first asked for, so a memory backend never builds text and a
 * Redis backend never parses twice.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Schema from "effect/Schema"
import * as SchemaAST from "effect/SchemaAST"
import * as SchemaIssue from "effect/SchemaIssue"
import * as SchemaJITCompiler from "effect/schema/SchemaJITCompiler"
import { makeCopier } from "./internal/copier.ts"
import { settled } from "./internal/settled.ts"
import { InvalidInput } from "./Reason.ts"

/**
 * A JSON value as text and as tree, and the trace it belongs to. Treat the tree as read-only.
 *
 * On the wire a payload is its JSON text. One that has more to say is an envelope around it,
 * `{"~cohort":1,"trace":"…","data":…}`. The number is the least that a reader has to know: one that
 * knows less takes the payload for {@link newer} and leaves it to others; what a reader does not know of an envelope
 * it ignores.
 *
 * @since 0.1.0
 */
export class Payload {
  /** As on the wire. */
  #json: string | undefined
  /** Without an envelope; the same text where there is none. */
  #dataJson: string | undefined
  #tree: unknown
  #hasTree: boolean
  /** W3C `traceparent` of the span that sent it, where tracing was on. */
  readonly trace: string | undefined
  /** Whether a later release wrote it, in a way that this one cannot read. */
  readonly newer: boolean
  /** The last value decoded from this payload, for {@link Wire.read}. */
  memo: { readonly wire: unknown; readonly copy: (() => unknown) | undefined } | undefined = undefined

  private constructor(
    dataJson: string | undefined,
    tree: unknown,
    hasTree: boolean,
    trace: string | undefined = undefined,
    json: string | undefined = undefined,
    newer = false
  ) {
    this.#json = json
    this.#dataJson = dataJson
    this.#tree = tree
    this.#hasTree = hasTree
    this.trace = trace
    this.newer = newer
  }

  /** From the wire. The text is parsed when the tree is first read; malformed text throws there. */
  static fromJson(json: string): Payload {
    return json.startsWith(mark) ? Payload.fromEnvelope(json) : new Payload(json, undefined, false, undefined, json)
  }

  /** From the JSON text of a value; {@link fromJson} is for what comes from the wire. */
  static fromData(json: string): Payload {
    return new Payload(json, undefined, false)
  }

  /** From a JSON tree that nobody else will change. */
  static fromTree(tree: unknown): Payload {
    return new Payload(undefined, tree, true)
  }

  /** The same, sent by a span. */
  withTrace(trace: string): Payload {
    return new Payload(this.#dataJson, this.#tree, this.#hasTree, trace)
  }

  private static fromEnvelope(json: string): Payload {
    let envelope: Envelope
    try {
      envelope = JSON.parse(json) as Envelope
    } catch {
      // Stays what it is, and throws when it is read.
      return new Payload(json, undefined, false, undefined, json)
    }
    const { "~cohort": version, data, trace } = envelope
    return version > envelopeVersion
      ? new Payload(json, undefined, false, undefined, json, true)
      : new Payload(undefined, data, true, typeof trace === "string" ? trace : undefined, json)
  }

  /** What goes over the wire. */
  get json(): string {
    this.#json ??= sealed(this.dataJson, this.trace)
    return this.#json
  }

  /** The JSON text of the value. */
  get dataJson(): string {
    this.#dataJson ??= JSON.stringify(this.#tree)
    return this.#dataJson
  }

  get tree(): unknown {
    if (!this.#hasTree) {
      // The one place that parses: what comes out goes straight into a Schema.
      this.#tree = JSON.parse(this.#dataJson!)
      this.#hasTree = true
    }
    return this.#tree
  }
}

/** What only an envelope begins with: a value that does is put into one. */
const mark = '{"~cohort":'

/** What this release reads, and writes. */
const envelopeVersion = 1

interface Envelope {
  readonly "~cohort": number
  readonly trace?: unknown
  readonly data: unknown
}

const sealed = (dataJson: string, trace: string | undefined): string =>
  trace === undefined && !dataJson.startsWith(mark)
    ? dataJson
    : `${mark}${envelopeVersion},${trace === undefined ? "" : `"trace":${JSON.stringify(trace)},`}"data":${dataJson}}`

/** What {@link Wire.read} answers when it cannot tell by itself. */
export const undecided: unique symbol = Symbol("undecided")

/**
 * Writes values of one Schema to payloads, and reads them back.
 *
 * @since 0.1.0
 */
export interface Wire<A, RD = never, RE = never> {
  /**
   * Fails with `InvalidInput` naming `field` when the Schema refuses the value. As with
   * a port, called inside a running effect: what needs no waiting is done in the call.
   */
  readonly encode: (field: string, value: A) => Effect.Effect<Payload, InvalidInput, RE>
  /** A value of its own for every call: changing it changes nothing else. */
  readonly decode: (payload: Payload) => Effect.Effect<A, Schema.SchemaError, RD>
  /**
   * Like `decode`, for a payload read many times: decodes once and hands out copies.
   * `undecided` when `decode` has to be asked: for a value that has no structure to
   * copy, needs a service, or does not decode.
   */
  readonly read: (payload: Payload) => A | typeof undecided
}

/**
 * Makes the {@link Wire} of a Schema, through its canonical JSON codec.
 *
 * @since 0.1.0
 */
export const wire = <S extends Schema.Constraint>(
  schema: S
): Wire<S["Type"], S["DecodingServices"], S["EncodingServices"]> => {
  const codec = Schema.toCodecJson(schema)
  SchemaJITCompiler.enable(codec.ast)
  SchemaJITCompiler.enable(Schema.flip(codec).ast)
  const encodeUnknown = Schema.encodeUnknownEffect(codec)
  const decodeUnknown = Schema.decodeUnknownEffect(codec)
  const opaque = isOpaque(SchemaAST.toEncoded(codec.ast))

  // Parts without a Schema pass encoding untouched: only text cuts the tie to the caller's objects.
  const toPayload = (tree: unknown): Payload => {
    if (!opaque) return Payload.fromTree(tree)
    const json: string | undefined = JSON.stringify(tree)
    if (json === undefined) throw new Error("has no JSON form")
    return Payload.fromData(json)
  }
  const treeOf = (payload: Payload): unknown => (opaque ? JSON.parse(payload.dataJson) : payload.tree)

  const refused = (field: string, error: unknown): Effect.Effect<never, InvalidInput> =>
    Effect.fail(new InvalidInput({ field, detail: reasonOf(error) }))

  const decode = (payload: Payload): Effect.Effect<S["Type"], Schema.SchemaError, S["DecodingServices"]> => {
    if (payload.newer) return Effect.fail(unreadable)
    let tree: unknown
    try {
      tree = treeOf(payload)
    } catch {
      tree = undefined // text that is not JSON decodes like a missing value: a SchemaError
    }
    return decodeUnknown(tree)
  }

  const self: Wire<S["Type"], S["DecodingServices"], S["EncodingServices"]> = {
    encode: (field, value) => {
      const encoded = encodeUnknown(value)
      const known = settled(encoded)
      if (known !== undefined) {
        try {
          return Exit.succeed(toPayload(known.value))
        } catch (error) {
          return refused(field, error)
        }
      }
      return Effect.matchEffect(encoded, {
        onFailure: (error) => refused(field, error),
        onSuccess: (tree) =>
          Effect.try({
            try: () => toPayload(tree),
            catch: (error) => new InvalidInput({ field, detail: reasonOf(error) })
          })
      })
    },
    decode,
    read: (payload) => {
      let memo = payload.memo
      if (memo === undefined || memo.wire !== self) {
        // Only a decode that needed no service and no wait gives the same value every time.
        const decoded = settled(decode(payload))
        memo = { wire: self, copy: decoded === undefined ? undefined : makeCopier(decoded.value) }
        payload.memo = memo
      }
      return memo.copy === undefined ? undecided : (memo.copy() as S["Type"])
    }
  }
  return self
}

/** Whatever its Schema would take. */
const unreadable = new Schema.SchemaError(new SchemaIssue.InvalidValue({ message: "written by a later release" }))

const reasonOf = (error: unknown): string => (error instanceof Error ? error.message : String(error))

/** Whether encoding may hand through an object that the caller still holds. */
const isOpaque = (ast: SchemaAST.AST, seen = new Set<SchemaAST.AST>()): boolean => {
  if (seen.has(ast)) return false
  seen.add(ast)
  const any = (asts: ReadonlyArray<SchemaAST.AST>) => asts.some((ast) => isOpaque(ast, seen))
  switch (ast._tag) {
    case "Null":
    case "Undefined":
    case "Void":
    case "Never":
    case "String":
    case "Number":
    case "Boolean":
    case "BigInt":
    case "Literal":
    case "Enum":
    case "TemplateLiteral":
      return false
    case "Objects":
      return (
        (ast.propertySignatures.length === 0 && ast.indexSignatures.length === 0) ||
        any(ast.propertySignatures.map((p) => p.type)) ||
        any(ast.indexSignatures.map((i) => i.type))
      )
    case "Arrays":
      return any(ast.elements) || any(ast.rest)
    case "Union":
      return any(ast.types)
    case "Suspend":
      return isOpaque(ast.thunk(), seen)
    default:
      return true
  }
}
