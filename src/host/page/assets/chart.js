/** Lines over the last minutes. */
const svg = "http://www.w3.org/2000/svg"
const width = 130
const height = 26
/** Five minutes, a second each. */
const length = 300

export const chart = (label) => {
  const values = []
  const element = document.createElementNS(svg, "svg")
  const area = document.createElementNS(svg, "polygon")
  const line = document.createElementNS(svg, "polyline")
  element.setAttribute("class", "chart")
  element.setAttribute("viewBox", `0 0 ${width} ${height}`)
  element.setAttribute("role", "img")
  element.append(area, line)
  return {
    element,
    add: (value) => {
      values.push(value)
      if (values.length > length) values.shift()
      const most = Math.max(1, ...values)
      const from = length - values.length
      const points = values.map(
        (v, i) =>
          `${(((from + i) / (length - 1)) * width).toFixed(1)},${(height - 2 - (v / most) * (height - 4)).toFixed(1)}`
      )
      line.setAttribute("points", points.join(" "))
      const left = ((from / (length - 1)) * width).toFixed(1)
      area.setAttribute("points", `${left},${height} ${points.join(" ")} ${width},${height}`)
      element.setAttribute("aria-label", `${label}: ${value}, at most ${Math.max(...values)} in the last 5 minutes`)
    }
  }
}
