/** What text comes from outside becomes text nodes, never markup. */
export const $ = (id) => document.getElementById(id)

/** `h("td", { class: "number" }, "7", node, …)`; a function is a listener. */
export const h = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag)
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value)
    else if (value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value)
  }
  element.append(...children)
  return element
}

const fill = (cell, value) => {
  if (value instanceof Node) {
    if (cell.firstChild !== value || cell.childNodes.length > 1) cell.replaceChildren(value)
    return
  }
  const [text, kind] = Array.isArray(value) ? value : [value, undefined]
  if (cell.textContent !== String(text)) cell.textContent = String(text)
  if (cell.dataset.kind !== (kind ?? "")) {
    if (cell.dataset.kind) cell.classList.remove(cell.dataset.kind)
    if (kind) cell.classList.add(kind)
    cell.dataset.kind = kind ?? ""
  }
}

const titleOf = (title) => (typeof title === "string" ? title : "Select")

/**
 * A table that keeps its rows, so that what has the focus keeps it. A column is `[title, value, class]`; the value
 * of a cell is text, `[text, class]`, or a node, which it returns again as long as it is the same.
 */
export const table = (parent, caption, columns, keyOf, empty) => {
  const body = h("tbody")
  parent.append(
    h(
      "table",
      { "aria-label": caption },
      h("thead", {}, h("tr", {}, ...columns.map(([title, , kind]) => h("th", { scope: "col", class: kind }, title)))),
      body
    )
  )
  const nothing = h("tr", {}, h("td", { colspan: String(columns.length), class: "empty" }, empty))
  const rows = new Map()
  return (items) => {
    const keys = new Set(items.map(keyOf))
    for (const [key, row] of rows) {
      if (keys.has(key)) continue
      row.remove()
      rows.delete(key)
    }
    items.forEach((item, i) => {
      const key = keyOf(item)
      let row = rows.get(key)
      if (row === undefined) {
        // Without the room for columns, each cell says what it is.
        row = h("tr", {}, ...columns.map(([title, , kind]) => h("td", { class: kind, "data-title": titleOf(title) })))
        rows.set(key, row)
      }
      columns.forEach(([, value], column) => {
        fill(row.cells[column], value(item))
      })
      if (body.children[i] !== row) body.insertBefore(row, body.children[i] ?? null)
    })
    if (items.length === 0) body.append(nothing)
    else nothing.remove()
  }
}

/** The same node for the same key. */
export const kept = (make) => {
  const nodes = new Map()
  return (key, ...rest) => {
    if (!nodes.has(key)) nodes.set(key, make(key, ...rest))
    return nodes.get(key)
  }
}

export const say = (text, kind = "") => {
  $("said").textContent = text
  $("said").className = kind
}

export const seconds = (millis) => {
  const s = Math.max(0, Math.round(millis / 1_000))
  if (s < 120) return `${s} s`
  if (s < 7_200) return `${Math.round(s / 60)} min`
  return s < 172_800 ? `${Math.round(s / 3_600)} h` : `${Math.round(s / 86_400)} days`
}

/** Of a date that comes as milliseconds or as text. */
export const clock = (at) => new Date(at).toLocaleTimeString()
