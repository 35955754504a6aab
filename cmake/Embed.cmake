# SPDX-License-Identifier: Apache-2.0
# cmake -D OUTPUT=embedded_files.cpp -P Embed.cmake FILE...  writes the C++ that io/embedded.h declares.
set(entries "")
math(EXPR last "${CMAKE_ARGC} - 1")
foreach(i RANGE ${last})
  if(i GREATER first AND DEFINED first)
    set(file ${CMAKE_ARGV${i}})
    get_filename_component(name ${file} NAME)
    file(SIZE ${file} size)
    file(READ ${file} bytes HEX)
    string(REGEX REPLACE "(..)" "\\\\x\\1" bytes "${bytes}")
    string(APPEND entries "    {\"${name}\", std::string_view(\"${bytes}\", ${size})},\n")
  elseif(CMAKE_ARGV${i} STREQUAL "-P")
    math(EXPR first "${i} + 1")
  endif()
endforeach()
file(WRITE ${OUTPUT} "#include \"io/embedded.h\"

namespace pkmesh {
namespace {
constexpr EmbeddedFile kFiles[] = {
${entries}};
}  // namespace

std::span<const EmbeddedFile> embedded_files() { return kFiles; }

}  // namespace pkmesh
")
