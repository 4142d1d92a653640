/**
 * Collections, their fields, and what a row must look like.
 *
 * @since 0.1.0
 */
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as SchemaTransformation from "effect/SchemaTransformation"

/** Names that are safe as a column, a key in JSON and a part of a URL. */
const Name = Schema.String.check(Schema.isPattern(/^[A-Za-z][A-Za-z0-9_]{0,62}$/))

/**
 * A column of a collection. Text that stands for a value (`"42"`, `"true"`,
 * `"2026-01-31"`) is accepted as the value, as CSV files have nothing else.
 *
 * @since 0.1.0
 */
export const Field = Schema.Struct({
  name: Name,
  type: Schema.Literals(["text", "integer", "number", "boolean", "date"]),
  required: Schema.Boolean
})

/**
 * @since 0.1.0
 */
export type Field = typeof Field.Type

/**
 * @since 0.1.0
 */
export const Collection = Schema.Struct({ name: Name, fields: Schema.Array(Field) })

/**
 * @since 0.1.0
 */
export type Collection = typeof Collection.Type

/**
 * A validated row: the collection's fields and nothing else.
 *
 * @since 0.1.0
 */
export type Row = { readonly [field: string]: string | number | boolean | null }

/**
 * Turns unknown input into a row, or says what is wrong with it.
 *
 * @since 0.1.0
 */
export type Validator = (input: unknown) => Result.Result<Row, string>

const Numeric = Schema.Union([
  Schema.Finite,
  Schema.String.check(Schema.isPattern(/^-?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$/, { expected: "a number" })).pipe(
    Schema.decodeTo(Schema.Finite, SchemaTransformation.numberFromString)
  )
])

const fieldSchemas: { readonly [Type in Field["type"]]: Schema.Codec<string | number | boolean, any> } = {
  text: Schema.String,
  number: Numeric,
  integer: Numeric.check(Schema.isInt()),
  boolean: Schema.Union([
    Schema.Boolean,
    Schema.Literals(["true", "false"]).pipe(
      Schema.decodeTo(
        Schema.Boolean,
        SchemaTransformation.transform({
          decode: (text) => text === "true",
          encode: (value) => (value ? ("true" as const) : ("false" as const))
        })
      )
    )
  ]),
  date: Schema.String.check(
    Schema.isPattern(/^\d{4}-\d{2}-\d{2}$/, { expected: "a date like 2026-01-31" }),
    // `Date.parse` alone takes February 30 for March 2.
    Schema.makeFilter((text) => {
      const time = Date.parse(text)
      return (!Number.isNaN(time) && new Date(time).toISOString().startsWith(text)) || "a date that exists"
    })
  )
}

/**
 * Compiles the validator of a collection. It is a function: it cannot be cached or
 * sent, so every instance compiles its own.
 *
 * @since 0.1.0
 */
export const compile = (collection: Collection): Validator => {
  const decoders = collection.fields.map((field) => ({
    field,
    decode: Schema.decodeUnknownResult(fieldSchemas[field.type])
  }))
  return (input) => {
    if (typeof input !== "object" || input === null || Array.isArray(input)) return Result.fail("not a row")
    const row: Record<string, string | number | boolean | null> = {}
    for (const { decode, field } of decoders) {
      const value = Object.hasOwn(input, field.name) ? (input as Record<string, unknown>)[field.name] : undefined
      if (value === undefined || value === null || value === "") {
        if (field.required) return Result.fail(`${field.name}: is required`)
        row[field.name] = null
        continue
      }
      const decoded = decode(value)
      if (Result.isFailure(decoded)) {
        return Result.fail(`${field.name}: expected ${describe(field.type)}, got ${JSON.stringify(value).slice(0, 80)}`)
      }
      row[field.name] = decoded.success
    }
    return Result.succeed(row)
  }
}

const describe = (type: Field["type"]): string =>
  type === "date" ? "a date like 2026-01-31" : type === "integer" ? "a whole number" : `a ${type}`
