# CATAPULT_SANITIZE=address,undefined | thread: instrument everything we compile.
set(CATAPULT_SANITIZE "" CACHE STRING "Comma-separated sanitizers, empty for none")
if(CATAPULT_SANITIZE)
  add_compile_options("$<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${CATAPULT_SANITIZE};-fno-omit-frame-pointer;-g>")
  add_link_options(-fsanitize=${CATAPULT_SANITIZE})
endif()
