# Shared memory, for which C++ has no word: the dynamic part, and variables.
s/extern __shared__ (__align__\([0-9]+\) )?([a-z_0-9]+) ([a-z_]+)\[\];/\2* const \3 = reinterpret_cast<\2*>(emulated::dynamic_shared());/
s/__shared__ (__align__\([0-9]+\) )?((const )?[A-Za-z_0-9]+\*?) ([a-z_]+)((\[[^;]*\])?);/auto\& \4 = *reinterpret_cast<\2(*)\5>(emulated::shared_variable(sizeof(\2\5), __FILE__, __LINE__));/
